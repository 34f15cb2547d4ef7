"""The example of the README runs."""

from __future__ import annotations

import re
from pathlib import Path


def test_the_example(capsys):
    text = (Path(__file__).parent / "README.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    exec(compile(example, "README.md", "exec"), {})
    assert (
        "reverse.cu:6: write of 4 bytes, global, argument 1: 2 requests" in capsys.readouterr().out
    )
