"""Education: quiz cards from a folder of pictures: a question, and four answers of which one is right.

    python examples/quiz.py [FOLDER]             pictures; their captions, where there is a FOLDER.json of them

The right answer is the picture's caption; the wrong ones are those captions of the other pictures that the model finds
hardest to tell from it.
"""

import json
import random
import sys
from pathlib import Path

import beyondvl as bvl

FOLDER = Path(__file__).parent / "photos"


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]) if arguments else FOLDER
    model = bvl.AutoModel.from_pretrained("beyond-vl-model")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    seen = model.encode_image([str(path) for path in pictures])
    words = folder.with_suffix(".json")
    known = json.loads(words.read_text()) if words.exists() else {}
    captions = [known.get(path.name) or str(model.caption(seen[i])[0]) for i, path in enumerate(pictures)]
    if len(set(captions)) < 4:
        sys.exit(f"{folder}: found pictures of {len(set(captions))} captions, expected four and more")
    for i, path in enumerate(pictures[:4]):
        others = sorted({caption for caption in captions if caption != captions[i]})
        scores = model.match(seen[i], others)
        wrong = [others[at] for at in scores.argsort()[::-1][:3]]
        answers = random.Random(i).sample([captions[i], *wrong], 4)
        print(f"{path.name}: what does the picture show?")
        for letter, answer in zip("abcd", answers, strict=True):
            print(f"  {letter}) {answer}{'   <- right' if answer == captions[i] else ''}")


if __name__ == "__main__":
    main(sys.argv[1:])
