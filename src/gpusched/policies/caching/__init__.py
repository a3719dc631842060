"""Which cached prefix goes when room is needed."""
