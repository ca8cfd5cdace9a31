"""What must not be lost: usage records, first in a write-ahead journal, then in a database that can be asked."""
