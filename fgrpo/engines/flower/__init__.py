"""Clients on other machines: Flower brings messages there and back, and everything else is as in one process."""
