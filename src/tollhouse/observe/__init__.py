"""What is seen from outside: metrics, the access log, the state of the runtime. Nothing here decides anything."""
