"""Answers for people: tables on the terminal and self-contained HTML."""
