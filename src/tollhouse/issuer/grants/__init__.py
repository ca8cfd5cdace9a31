"""The grants: one file each, and each a plain coroutine from what was asked to what is granted."""
