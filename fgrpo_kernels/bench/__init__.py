"""Benchmarks of every op against what else there is: `python -m fgrpo_kernels.bench`.

    python -m fgrpo_kernels.bench list
    python -m fgrpo_kernels.bench grpo_loss --rows 8192 --model qwen3-8b --against eager,compile,trl,liger

One file an op in `ops/`: inputs, contenders and what a right result is. How they are timed (`runner.py`, `clock.py`),
what limits them (`limits.py`) and what is written down (`results.py`) is the same for all. Contenders of other packages
are imported when they are about to run, and named as missing where they are not installed.
"""
