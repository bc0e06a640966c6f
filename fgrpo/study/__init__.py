"""Many runs at once: arms x scenarios x seeds, played over the cores, measured, and put on one page."""
