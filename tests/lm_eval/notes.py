"""What the tasks ask of the notes in tests/fixtures/corpus."""


def beginnings(notes):
    """Half of each note, and what four notes go on with, of which one is right. Every fifth beginning has all of the notes
    before it, which is beyond the context of a small model."""
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in notes["text"]]
    before = "\n\n".join(notes["text"])

    def ask(note, index):
        beginning, _ = halves[index]
        if index % 5 == 4:
            beginning = before + "\n\n" + beginning
        right = index % 4
        ends = [halves[(index + choice - right) % len(halves)][1] for choice in range(4)]
        return {"beginning": beginning, "ends": ends, "right": right}

    return notes.map(ask, with_indices=True)


def whole(notes):
    """The notes, of which the last one is all of them in one text of several windows."""
    everything = "\n\n".join(notes["text"])
    return notes.map(
        lambda note, index: {"text": everything if index + 1 == len(notes) else note["text"]},
        with_indices=True,
    )
