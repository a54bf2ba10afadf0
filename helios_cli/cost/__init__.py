"""What a film will cost before a weight is read: calls, operations, memory, disk, time. No torch, nothing printed."""
