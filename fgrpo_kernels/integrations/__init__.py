"""Plug-ins for trainers that people already have, one module each. Importing this package imports none of them."""
