"""Planning: what a load would do, reported without a read of any leaf."""
