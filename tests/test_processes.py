"""Processes that work for ours leave nothing behind when they are killed."""

import subprocess
import sys

SCRIPT = """
from fgrpo.processes import forking_context, serve_only

def serve(line):
    serve_only()
    from tqdm import tqdm
    list(tqdm(range(2), disable=True))
    line.send("at work")
    line.recv()

if __name__ == "__main__":
    context = forking_context([])
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,))
    process.start()
    print(ours.recv())
    process.kill()
    process.join()
"""


def test_a_library_s_progress_bar_leaves_no_semaphore(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "at work\n", "")
