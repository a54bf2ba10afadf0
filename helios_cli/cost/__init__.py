"""The cost of a film before a weight is read: calls, operations, memory, disk, time. No torch, nothing printed."""
