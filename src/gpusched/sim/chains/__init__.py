"""Requests over chains of servers that hold the blocks of one model."""
