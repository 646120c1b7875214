"""`python -m zoo`: every network of torchvision and timm that the package is tried on, as docs/zoo.md."""

import argparse
import json
import sys
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path

from . import networks, page, speed
from .measure import examine


def main() -> int:
    options = _options()
    records = _known(options.records) if options.resume else {}
    entries = networks.torchvision_entries() + networks.timm_entries()
    chosen = [entry for entry in entries if not options.only or entry.name in options.only.split(",")]
    for i, entry in enumerate(chosen):
        if entry.name in records:
            continue
        print(f"{i + 1}/{len(chosen)} {entry.name}", file=sys.stderr, flush=True)
        records[entry.name] = _examined(entry)
        options.records.parent.mkdir(parents=True, exist_ok=True)
        options.records.write_text(json.dumps(records, indent=1))
    times = _times(options)
    options.out.write_text(page.page(list(records.values()), times), encoding="utf-8")
    wrong = [record["name"] for record in records.values() if page.problem(record)]
    print(
        f"{len(records)} networks, {len(wrong)} with problems: {', '.join(wrong) or 'none'}", file=sys.stderr
    )
    return 1 if wrong else 0


def _times(options: argparse.Namespace) -> list[dict]:
    """Of the networks that were timed, now or, with --resume, before."""
    times = _known(options.times) if options.resume else {}
    for name in speed.NETWORKS if options.speed else ():
        if name in times or (options.only and f"torchvision/{name}" not in options.only.split(",")):
            continue
        print(f"timing {name}", file=sys.stderr, flush=True)
        times[name] = speed.measure(name)
        options.times.parent.mkdir(parents=True, exist_ok=True)
        options.times.write_text(json.dumps(times, indent=1))
    return list(times.values())


def _examined(entry: networks.Entry) -> dict:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return asdict(examine(entry))
    except Exception as error:  # one network must not end the run; the page says what happened
        traceback.print_exc()
        first_line = next(iter(str(error).splitlines()), "")
        return {"name": entry.name, "failed": f"{type(error).__name__}: {first_line}"}


def _known(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/zoo.md"))
    parser.add_argument("--records", type=Path, default=Path("build/zoo.json"), help="results as JSON")
    parser.add_argument("--times", type=Path, default=Path("build/zoo_speed.json"), help="the same of times")
    parser.add_argument("--resume", action="store_true", help="keep what --records and --times have")
    parser.add_argument("--only", help="names such as torchvision/resnet18, separated by commas")
    parser.add_argument("--speed", action="store_true", help="also time the networks of speed.py")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
