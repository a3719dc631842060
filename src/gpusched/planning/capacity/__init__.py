"""How many instances of which model run where, from one hour to the next."""
