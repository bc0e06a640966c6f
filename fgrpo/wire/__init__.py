"""What crosses between clients and server, and how it is checked to be whole."""
