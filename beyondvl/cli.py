"""The command line: `python -m beyondvl COMMAND`. Results go to stdout, progress and warnings to stderr.

Exit codes: 0 done, 1 the work failed (a bad file, a model that does not load), 2 the command was wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .hub import DEFAULT_MODEL
from .search.commands import add_options as search_options
from .search.commands import dedupe, index, search
from .serve.commands import add_options as serve_options
from .serve.commands import serve

__all__ = ["main"]


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def similarity(options: argparse.Namespace) -> None:
    """Cosine of every picture, clip or sound with every text, and the best text of each."""
    from .models.auto import AutoModel

    pictures = _pictures(options.images, all_media=True)
    model = AutoModel.from_pretrained(options.model, dtype=options.dtype)
    items = [_seen(name) for name in pictures]
    images = model.encode(items, normalize_embeddings=True, show_progress_bar=options.progress)
    texts = model.encode([{"text": t} for t in options.text], normalize_embeddings=True)
    scores = model.similarity(images, texts)
    names = [Path(p).name for p in pictures]
    if options.json:
        for name, row in zip(pictures, scores, strict=True):
            best = options.text[int(row.argmax())]
            print(
                json.dumps(
                    {"image": name, "scores": dict(zip(options.text, map(float, row), strict=True)), "best": best}
                )
            )
        return
    if len(options.text) <= 4:
        header = ["", *options.text]
    else:
        for i, text in enumerate(options.text):
            print(f"{i + 1:>2}  {text}")
        print()
        header = ["", *[str(i + 1) for i in range(len(options.text))]]
    print(_table([header, *[[n, *[f"{s:.2f}" for s in row]] for n, row in zip(names, scores, strict=True)]]))
    print()
    print(_table([[n, "->", options.text[int(row.argmax())]] for n, row in zip(names, scores, strict=True)]))


def _names(text: str, test: Callable[[Path], bool]) -> bool:
    """Whether a text is the path of such a thing; one too long for a path is not."""
    try:
        return test(Path(text))
    except (OSError, ValueError):
        return False


def _seen(name: str) -> dict[str, str]:
    """A file as a clip or a sound when its extension says so, else as a picture, whatever it is called."""
    from .processing.items import modality_of

    kind = modality_of(name)
    return {kind if kind in ("video", "audio") else "image": name}


def _pictures(arguments: list[str], all_media: bool = False) -> list[str]:
    """Files as given; a folder stands for the pictures in it, and with `all_media` for the clips and sounds too."""
    from .processing.items import AUDIO_EXTENSIONS, PICTURE_EXTENSIONS, VIDEO_EXTENSIONS

    extensions = PICTURE_EXTENSIONS + (VIDEO_EXTENSIONS + AUDIO_EXTENSIONS if all_media else ())
    paths: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            paths += sorted(str(p) for p in path.iterdir() if p.suffix.lower() in extensions)
        elif path.is_file():
            paths.append(argument)
        else:
            raise FileNotFoundError(f"{argument}: no such file or folder")
    if not paths:
        raise ValueError(f"{', '.join(arguments)}: no pictures found")
    return paths


def embed(options: argparse.Namespace) -> None:
    """One JSON line per item: {"input", "embedding"}, or "error" instead; with --output, files of all rows.

    The exit code is 1 where an item could not be read.
    """
    from .models.auto import AutoModel

    model = AutoModel.from_pretrained(options.model, dtype=options.dtype)
    if options.output is not None:
        if _write_embeddings(model, options):
            raise SystemExit(1)
        return
    names = [[item] if not _names(item, Path.is_dir) else _pictures([item], all_media=True) for item in options.inputs]
    items = (_seen(name) if _names(name, Path.is_file) else name for name in itertools.chain(*names))
    failed, written = False, itertools.chain(*names)
    for rows in model.encode_stream(items, chunk_size=256, normalize_embeddings=options.normalize):
        errors = {failure.index: failure for failure in rows.failures}
        for place, row in zip(rows.indices, rows, strict=True):
            said = {"input": next(written)}
            if place in errors:
                said["error"] = str(errors[place].error)
            else:
                said["embedding"] = [round(float(x), 6) for x in row]
            print(json.dumps(said))
        failed = failed or bool(errors)
    if failed:
        raise SystemExit(1)


def _write_embeddings(model: Any, options: argparse.Namespace) -> int:
    """Writes embeddings of all rows to files; how many failed."""
    done = model.encode_to(
        options.output,
        options.inputs[0] if len(options.inputs) == 1 else options.inputs,
        column=options.column,
        key=options.key,
        format=options.format,
        precision=options.precision,
        overwrite=options.overwrite,
        normalize_embeddings=options.normalize,
        show_progress_bar=options.progress,
    )
    for failure in done.failures:
        print(f"{failure.source}: {failure.error}", file=sys.stderr)
    bad = f", of which {len(done.failures)} could not be read" if done.failures else ""
    print(f"{done.rows} rows{bad}, in {len(done.files)} files in {done.folder}", file=sys.stderr)
    return len(done.failures)


def caption(options: argparse.Namespace) -> None:
    """What each picture (clip, sound) shows, by a captioning model."""
    _print_texts(options, "image-text-to-text", None if options.prompt is None else [options.prompt])


def ask(options: argparse.Namespace) -> None:
    """Answers to questions about a picture (clip, sound), by a model that answers; the picture is run once."""
    _print_texts(options, "visual-question-answering", options.question)


def _print_texts(options: argparse.Namespace, task: str, texts: list[str] | None) -> None:
    from .pipelines import pipeline

    write = pipeline(task, model=options.model, dtype=options.dtype)
    settings = {"max_new_tokens": options.max_new_tokens, "num_beams": options.num_beams}
    given = [options.image] if isinstance(options.image, str) else options.image
    for picture in _pictures(given, all_media=write.model.supports("audio")):
        for prompt, (result,) in zip(texts or [None], write([picture], texts, **settings), strict=True):
            text = result["answer" if "question" in options else "generated_text"]
            if options.json:
                extra = {} if prompt is None else {"input_text": prompt}
                sure = {"score": round(result["score"], 4)} if "score" in result else {}
                print(json.dumps({"image": picture, **extra, "generated_text": text, **sure}))
            else:
                print(f"{Path(picture).name}: {f'{prompt} ' if 'question' in options else ''}{text}")


def match(options: argparse.Namespace) -> None:
    """Probability that each text fits each picture (clip, sound), by a model with a matching head."""
    from .pipelines import pipeline

    score = pipeline("image-text-matching", model=options.model, dtype=options.dtype)
    for picture in _pictures(options.images, all_media=score.model.supports("audio")):
        for result in score(picture, options.text):
            if options.json:
                print(json.dumps({"image": picture, **result}))
            else:
                print(f"{Path(picture).name}: {result['score']:.3f} {result['label']}")


def info(options: argparse.Namespace) -> None:
    """What a checkpoint is: family, towers, sizes, memory."""
    from .models.auto import AutoModel
    from .models.tower import plans

    start = time.perf_counter()
    model = AutoModel.from_pretrained(options.model, dtype=options.dtype)
    facts: dict[str, Any] = {
        "class": type(model).__name__,
        "model_type": model.config.get("model_type"),
        "dtype": model.dtype,
        "packed_bytes": model.packed_bytes,
        "load_seconds": round(time.perf_counter() - start, 3),
    }
    for name, tower in model.towers.items():
        facts[name] = {
            "hidden_size": tower.encoder.hidden_size,
            "num_layers": len(tower.encoder.layers),
            "outputs": sorted(tower.outputs),
        }
    if options.plan:
        for name, lines in plans(model.towers, model.num_threads).items():
            facts[name]["plan"] = _shortened(lines)
    print(json.dumps(facts) if options.json else json.dumps(facts, indent=2))


def _info_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", help="folder, hub id, or the shipped default")
    sub.add_argument("--plan", action="store_true", help="what one call of each tower does, phase by phase")


def _shortened(lines: list[str]) -> list[str]:
    """Phases that come again and again once, with their number."""
    out, at = [], 0
    while at < len(lines):
        length = max(range(1, 13), key=lambda n: (_repeats(lines, at, n) - 1) * n)
        repeats = _repeats(lines, at, length)
        out += [f"{repeats} times:"] if repeats > 1 else []
        out += [f"{'    ' if repeats > 1 else ''}{line}" for line in lines[at : at + length]]
        at += repeats * length
    return out


def _repeats(lines: list[str], at: int, length: int) -> int:
    """How often the `length` lines from `at` come in a row."""
    count = 1
    while lines[at : at + length] == lines[at + count * length : at + (count + 1) * length] != []:
        count += 1
    return count


def convert(options: argparse.Namespace) -> None:
    """Writes a checkpoint's weights as one float32 model.safetensors beside copies of its other files."""
    from .folder import Folder
    from .hub import resolve
    from .models.saving import float_tensors, write_floats
    from .weights import open_checkpoint

    source, target = resolve(options.model), Path(options.output)
    tensors = float_tensors(open_checkpoint(source))
    write_floats(target, tensors, Folder(source).files)
    print(f"{len(tensors)} tensors written to {target / 'model.safetensors'}", file=sys.stderr)


def adapt(options: argparse.Namespace) -> None:
    """Brings a model's texts nearer to your own pictures, by pairs of both; writes the adapted model."""
    from .models.auto import AutoModel
    from .pairs import adapt as learn
    from .pairs import read_pairs

    images, texts = read_pairs(options.pairs, options.image_column, options.text_column)
    model = AutoModel.from_pretrained(options.model, dtype=options.dtype)
    done = learn(model, images, texts, options.output, show_progress_bar=options.progress)
    for failure in done.failures:
        print(f"{failure.source}: {failure.error}", file=sys.stderr)
    if options.json:
        print(json.dumps(done._asdict() | {"folder": str(done.folder), "failures": len(done.failures)}))
        return
    ways = ("picture -> text", "text -> picture")
    for way, before, after in zip(ways, done.before, done.after, strict=True):
        print(f"{way}: R@1 {before:.1f} -> {after:.1f} of {done.held_out} held-out pictures")
    print(f"learned from {done.pictures} pictures in {done.seconds:.1f} s; the adapted model is in {done.folder}")


def pack(options: argparse.Namespace) -> None:
    """Writes packed weights, which load in milliseconds and are shared by all processes, beside the other files."""
    from .models.auto import AutoModel

    model = AutoModel.from_pretrained(options.model, dtype=options.dtype)
    model.save_packed(options.output)
    print(f"{model.packed_bytes / 1e6:.0f} MB of {model.dtype} for {model.isa} in {options.output}", file=sys.stderr)


def verify(options: argparse.Namespace) -> None:
    """Every output beside transformers' on the spot, with speeds; needs torch and transformers."""
    from .verify import verify_model

    if not verify_model(options.model, options.json):
        raise SystemExit(1)


def doctor(options: argparse.Namespace) -> None:
    """What this machine has: processor, kernels, threads, BLAS, optional parts."""
    from .show_config import describe, show_config

    if options.json:
        print(json.dumps(describe()))
    else:
        show_config()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="beyondvl",
        description="Vision-language models on ordinary computers. @FILE stands for the lines of a file as arguments.",
        fromfile_prefix_chars="@",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(function: Any, **kwargs: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=function.__doc__.splitlines()[0], **kwargs)
        sub.set_defaults(run=function)
        if function not in (embed, convert, pack, serve):
            sub.add_argument("--json", action="store_true", help="JSON lines instead of a table")
        return sub

    def model_option(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--model", default=DEFAULT_MODEL, help="folder, hub id, or the shipped default")
        dtype_option(sub)

    def dtype_option(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--dtype", help="float32 (default), bfloat16, int8, fastest or auto")

    sub = add(similarity)
    sub.add_argument("images", nargs="+", help="picture, video and sound files, or folders of them")
    sub.add_argument("--text", nargs="+", required=True, help="texts to compare with")
    sub.add_argument("--progress", action="store_true", default=None, help="show a progress bar on stderr")
    model_option(sub)
    sub = add(embed)
    _embed_options(sub)
    model_option(sub)
    for function in (index, search, dedupe):
        search_options(add(function), function)
    serve_options(add(serve))
    for function in (caption, ask):
        sub = add(function)
        sub.add_argument(
            "image", nargs="+" if function is caption else None, help="picture (clip, sound) file, or folder of them"
        )
        if function is ask:
            sub.add_argument("question", nargs="+", help="one or several")
        else:
            sub.add_argument("--prompt", help="words the caption begins with")
        sub.add_argument("--max-new-tokens", type=int, default=20, help="at most so many (default 20)")
        sub.add_argument("--num-beams", type=int, default=1, help="1 (default) is greedy search")
        model_option(sub)
    sub = add(match)
    sub.add_argument("images", nargs="+", help="picture (clip, sound) files or folders of them")
    sub.add_argument("--text", nargs="+", required=True, help="texts to match")
    model_option(sub)
    sub = add(info)
    _info_options(sub)
    dtype_option(sub)
    sub = add(convert)
    sub.add_argument("model", help="folder or hub id")
    sub.add_argument("output", help="folder to write")
    sub = add(adapt)
    sub.add_argument("pairs", help="a .csv or .tsv with a header: a picture's file and a text in each row")
    sub.add_argument("output", help="folder to write the adapted model to")
    sub.add_argument("--image-column", help="by default image, filepath, file, path or image_path")
    sub.add_argument("--text-column", help="by default text, caption, title or label")
    sub.add_argument("--progress", action="store_true", default=None, help="show a progress bar on stderr")
    model_option(sub)
    sub = add(pack)
    sub.add_argument("model", help="folder, hub id, or the shipped default")
    sub.add_argument("output", help="folder to write")
    dtype_option(sub)
    sub = add(verify)
    sub.add_argument("model", help="folder or hub id")
    add(doctor)
    return parser


def _embed_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "inputs",
        nargs="+",
        help="texts, picture, video and sound files, folders; with --output also patterns, shards, tables",
    )
    sub.add_argument("--normalize", action="store_true", help="unit length")
    sub.add_argument("--output", help="a folder to write files of all rows to; the same command goes on after a stop")
    sub.add_argument("--format", default="parquet", help="parquet (default), arrow, npy or clip-retrieval")
    sub.add_argument("--column", help="of tables the column, of shards the extension, that holds the items")
    sub.add_argument("--key", help="the column that names a table's rows")
    sub.add_argument(
        "--precision", default="float32", help="float32 (default), float16, int8, uint8, binary or ubinary"
    )
    sub.add_argument("--overwrite", action="store_true", help="begin anew")
    sub.add_argument("--progress", action="store_true", default=None, help="show a progress bar on stderr")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"beyondvl {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
