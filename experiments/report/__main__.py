"""Makes reports again from what is stored alone.

    python -m experiments.report runs/mine              # runs/mine/report.html, also while it runs
    python -m experiments.report runs/a runs/b          # report.html: several beside each other
    python -m experiments.report runs/a --reference=experiments/references/verl_gsm8k_ppo.json
    python -m experiments.report experiments/results    # tables and figures of stored results

A directory with metrics.jsonl is a run's, local or in a bucket; in any other comparison.json,
dynamics.json, prefix.json and family.json are searched at any depth.
"""

import contextlib
import pathlib
from collections.abc import Sequence

from absl import flags

from experiments import main
from experiments.report import files, results
from remix_jax import files as directories
from remix_jax.errors import InputError
from remix_jax.run import page
from remix_jax.sinks.metrics import METRICS_FILE


def experiment(*named: str, out: str = "", references: Sequence[str] = ()) -> None:
    """One page of all that are runs; tables and figures of what the others hold."""
    if not named:
        raise InputError("name directories of runs, or of results")
    roots = {text: directories.resolve(text, "report") for text in named}
    runs = {text: root for text, root in roots.items() if (root / METRICS_FILE).exists()}
    for text in named:
        if text not in runs:
            redraw(pathlib.Path(text), out)
    if runs:
        published = [page.read_reference(pathlib.Path(text).expanduser()) for text in references]
        write_page(runs, out, published)


def write_page(
    runs: dict[str, directories.Path], out: str = "", references: Sequence[page.Reference] = ()
) -> None:
    """The page of these runs: in `out`, else in the run's directory, of several in this one."""
    with contextlib.ExitStack() as held:
        mirrors = {}
        for text, root in runs.items():
            mirror = held.enter_context(directories.Mirror(root, page.READ))
            mirrors[text if len(runs) > 1 else mirror.name] = mirror
        only = mirror if len(runs) == 1 and not out else None
        target = only.local if only else pathlib.Path(out)
        target.mkdir(parents=True, exist_ok=True)
        local = {name: mirror.local for name, mirror in mirrors.items()}
        page.write(local, target / page.PAGE, references)
    print((only and only.error) or f"{only.root if only else target}/{page.PAGE}")


def redraw(root: pathlib.Path, out: str = "") -> None:
    """Tables and figures of the results below `root`, beside their JSON or in `out`."""
    found = [(kind, path) for kind in files.KINDS for path in sorted(root.rglob(f"{kind}.json"))]
    if not found:
        names = ", ".join(f"{kind}.json" for kind in files.KINDS)
        raise InputError(f"{root}: neither a run's {METRICS_FILE} nor {names} there or below")
    for kind, path in found:
        data = results.read_json(path)
        target = pathlib.Path(out) / path.parent.relative_to(root) if out else path.parent
        files.write(kind, data, target)
        print(f"{path}: {target}/{kind}.md and figures")


if __name__ == "__main__":
    OUT = flags.DEFINE_string(
        "out", "", "directory for what is written; default: that of the run or the JSON; of runs: ."
    )
    REFERENCES = flags.DEFINE_list("reference", [], "published curves to lie beside the runs'")
    main.run(
        lambda *named: experiment(*named, out=OUT.value, references=REFERENCES.value),
        takes_arguments=True,
    )
