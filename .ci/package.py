"""Build the packages, look at what is in them, and try the wheel as somebody who installs it would.

    python .ci/package.py --out dist            lends the wheel the packages of this environment
    python .ci/package.py --out dist --empty    into an empty environment, with all it needs

The source archive and the wheel are built from the files of the clone, ignored ones left out. Then:

1. the wheel made from the archive is the one made from the clone;
2. it holds the files of ``src/patchtrain``, every one, its licence, and nothing else;
3. its metadata is what an index accepts, and says what ``pyproject.toml`` and the package say;
4. in a new environment outside of the clone, with no extra installed, the commands work: text is
   prepared, a model trained and asked, the demo run, and what needs an extra names it.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packaging.metadata import Metadata

ROOT = Path(__file__).parents[1]
RECIPE = """\
store: store
out: run
model:
  config: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
           num_attention_heads: 2, num_key_value_heads: 2, tie_word_embeddings: true}
plan: {preset: superposition, patch_size: 4, step_fraction: 0.5, context_length: 32,
       tokens_per_step: 512, steps: 30, max_epochs: 99}
training: {learning_rate: 1.0e-2, use_cpu: true}
samples: ["def "]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where archive and wheel go")
    parser.add_argument("--empty", action="store_true", help="lend the wheel nothing")
    args = parser.parse_args()
    out = args.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with timed("build"):
            files = copy_clone(work / "clone")
            wheel, sdist = build(work / "clone", work / "dist")
            (again,) = build(work / "clone", work / "again", "--wheel")
        with timed("contents and metadata"):
            check_contents(wheel, again, sdist, files)
            version = check_metadata(wheel)
        with timed("environment"):
            python = install(wheel, work / "venv", args.empty)
        with timed("commands"):
            try_commands(python, work / "elsewhere", version)
        out.mkdir(parents=True, exist_ok=True)
        for file in (sdist, wheel):
            shutil.copy2(file, out / file.name)
            print(f"{out / file.name}  {file.stat().st_size / 1024:,.0f} KB")


@contextmanager
def timed(what: str) -> Iterator[None]:
    begin, used = time.monotonic(), processor_seconds()
    yield
    seconds = f"{time.monotonic() - begin:.1f} s, {processor_seconds() - used:.1f} s of processors"
    print(f"{what}: {seconds}", flush=True)


def processor_seconds() -> float:
    """Of the commands run so far; a busy machine does not change it much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(*command: str | Path, **options: object) -> str:
    """What a command printed; where it fails, that is shown and this ends too."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=-1, stderr=-2, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{done.stdout}\nexit code {done.returncode}: {' '.join(words)}")
    return str(done.stdout)


def copy_clone(folder: Path) -> set[str]:
    """Copy what git has or would take; returns the files' names."""
    listed = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return names


def build(clone: Path, out: Path, *kinds: str) -> list[Path]:
    """The archive and the wheel made from it, or the ``kinds`` asked for; the wheel first."""
    run(sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", out, clone)
    return sorted(out.iterdir(), key=lambda file: file.suffix != ".whl")


def check_contents(wheel: Path, again: Path, sdist: Path, files: set[str]) -> None:
    made, remade = read_wheel(wheel), read_wheel(again)
    expect("the wheel from the archive and the one from the clone", made, remade)
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/"
    own = {name for name in made if not name.startswith(info)}
    source = {name.removeprefix("src/") for name in files if name.startswith("src/patchtrain/")}
    expect("the wheel and src/patchtrain", own, source)
    if made.get(f"{info}licenses/LICENSE") != (ROOT / "LICENSE").read_bytes():
        sys.exit("the wheel has no licence, or another one")
    if "patchtrain/py.typed" not in own:
        sys.exit("the wheel does not say that it has types")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"}
    if missing := needed - names:
        sys.exit(f"the archive lacks {', '.join(sorted(missing))}")
    if extra := {name.split("/")[0] for name in names} & {"tests", "results", "benchmarks"}:
        sys.exit(f"the archive holds {', '.join(sorted(extra))}")


def read_wheel(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}


def expect(what: str, one: dict[str, bytes] | set[str], other: dict[str, bytes] | set[str]) -> None:
    if one != other:
        names = sorted(set(one) ^ set(other)) or "the contents of a file"
        sys.exit(f"{what} differ in {names}")


def check_metadata(wheel: Path) -> str:
    """Read it as an index does, which raises for what is not valid; returns the version."""
    (name,) = (name for name in read_wheel(wheel) if name.endswith(".dist-info/METADATA"))
    metadata = Metadata.from_email(read_wheel(wheel)[name], validate=True)
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.license_files == ["LICENSE"]
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (ROOT / "README.md").read_text(encoding="utf-8")
    plain = [entry for entry in metadata.requires_dist or [] if entry.marker is None]
    assert "torch" in {entry.name for entry in plain}
    return str(metadata.version)


def install(wheel: Path, folder: Path, empty: bool) -> Path:
    """A new environment that has the wheel, and what a plain install brings; its Python."""
    venv.create(folder, with_pip=empty)
    python = folder / "bin" / "python"
    if empty:
        run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
        return python
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    places = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    packages = Path(places.strip())
    # Packages of ours are found after those of the new environment; an editable install of the
    # clone is not, which a .pth file of its own would have to add.
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "sitecustomize.py").write_text(
        "import sys\nfrom patchtrain.extras import PACKAGES\n"
        "sys.modules.update(dict.fromkeys(PACKAGES))  # as if they were not there\n"
    )
    return python


def try_commands(python: Path, folder: Path, version: str) -> None:
    folder.mkdir()
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-c]*.py"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    (folder / "text.txt").write_text(text, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    # A home of its own, no variables of the clone's, and nothing to download from.
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "HF_HUB_OFFLINE": "1",
                   "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}  # fmt: skip
    options = {"cwd": folder, "env": environment}

    def patchtrain(*words: str) -> str:
        return run(python.with_name("patchtrain"), *words, **options)

    where = run(python, "-c", "import patchtrain; print(patchtrain.__file__)", **options)
    assert python.parents[1] in Path(where).parents, where
    assert patchtrain("--version") == f"patchtrain {version}\n"
    assert "examples:" in patchtrain("--help")
    patchtrain("prepare", "text.txt", "--out", "store", "--train-tokenizer", "bpe",
               "--vocab-size", "300")  # fmt: skip
    patchtrain("train", "recipe.yaml", "--quiet")
    assert (folder / "run" / "report.html").is_file()
    assert (folder / "run" / "model" / "model.safetensors").is_file()
    assert patchtrain("generate", "run", "def ").startswith("def ")
    patchtrain("demo", "--quick", "--out", "demo")
    assert list((folder / "demo").glob("*report.html"))
    tasks = [python.with_name("patchtrain"), "eval", "run", "--tasks", "blimp"]
    refused = subprocess.run(tasks, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.endswith("needs lm-eval: pip install 'patchtrain[eval]'\n")


if __name__ == "__main__":
    main()
