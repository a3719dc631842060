"""Lets the tests below find the doubles that lie here."""
