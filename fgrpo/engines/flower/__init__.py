"""Clients on other machines: Flower brings messages there and back, and everything else is as in one process."""

from fgrpo.quiet import be_quiet

be_quiet()  # both apps are imported by processes that Flower starts, before PyTorch and transformers are
