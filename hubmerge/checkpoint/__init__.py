"""Reading a distributed checkpoint, safely."""
