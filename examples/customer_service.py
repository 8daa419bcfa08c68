"""Customer service: a customer's photograph and questions; answers, and a person where the model is not sure.

python examples/customer_service.py [PHOTOGRAPH QUESTION ...]
"""

import sys
from pathlib import Path

import beyondvl as bvl

PHOTOGRAPHS = Path(__file__).parent / "photos"
QUESTIONS = [
    "is there a cup in the picture?",
    "is there a man in the picture?",
    "what color is the table?",
    "what is in the cup?",
]
SURE = 0.5  # below that a person answers


def main(arguments: list[str]) -> None:
    photograph, *questions = arguments or [str(PHOTOGRAPHS / "coffee.jpg"), *QUESTIONS]
    model = bvl.AutoModel.from_pretrained("beyond-vl-model")
    seen = model.encode_image(photograph)  # once: a further question costs its text alone
    caption = model.caption(seen)[0]
    print(f"{Path(photograph).name}: {caption} ({caption.confidence:.0%} sure)")
    for question in questions:
        answer = model.answer(seen, [question])[0]
        who = "" if answer.confidence >= SURE else ", a person will look"
        print(f"  {question} {answer} ({answer.confidence:.0%} sure{who})")


if __name__ == "__main__":
    main(sys.argv[1:])
