"""The wheel carries prompts and demo corpus, and works from any directory without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_runs_the_demo(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(PROJECT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"raters", "pipelines", f"{wheel.stem.split('-py3')[0]}.dist-info"}
    assert not [name for name in names if name.endswith((".pyc", ".partial"))]
    assert {f"raters/review_page/page.{kind}" for kind in ("html", "css", "js")} | {"raters/py.typed"} <= set(names)

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, env=environment)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(PROJECT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True, env=environment)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    demo = [str(python), "-m", "pipelines.infer_traces", "--limit", "20", "--show", "1"]
    done = subprocess.run(demo, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Labels with an accepted draw" in done.stdout
    assert (elsewhere / "runs" / "demo" / "infer_traces" / "traces.jsonl").stat().st_size > 0
    command = [str(tmp_path / "venv" / "bin" / "judgeseye"), "completion", "bash"]
    assert "infer_traces" in subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    # The light core: no torch came along.
    assert subprocess.run([str(python), "-c", "import torch"], env=environment, capture_output=True).returncode != 0
