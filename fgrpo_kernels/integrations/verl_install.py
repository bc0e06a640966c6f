"""Importing this module is `fgrpo_kernels.integrations.verl.install()`: for verl's `external_lib`, which imports it in
every worker."""

from fgrpo_kernels.integrations.verl import install

install()
