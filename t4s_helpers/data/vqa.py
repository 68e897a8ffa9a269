"""Visual questions on official files: VQAv2, GQA, VizWiz, ScienceQA, TextVQA, POPE, LLaVA's mix.

A sample has the task ``vqa``, no labels, and a ``question`` that ends with how to answer (our own
wording, an argument of each reader). ``answer`` is the one to train on; ``meta["answers"]`` holds all
true ones, and ``meta["rule"]`` says how they are compared: ``exact`` or ``vqav2``, the rules of
`t4s_helpers.evaluation.metrics.VQAAccuracy`, or ``yes-no`` (accuracy and F1 of "yes", POPE). Splits without
public answers have ``answer=None`` and no answers: they can be asked, not scored.

``registry.json`` says where the files come from and how they lie below ``root``. A further data set is
one class with two methods, `VqaDataset.questions` and `VqaDataset.read`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .dataset import BadRow, Dataset, Record, first_there, list_of, needed, read_json
from .mixtures import Conversation
from .sample import Sample, SampleError

SHORT = "Answer in one word or a short phrase."
LETTER = "Answer with the letter of the right choice."
UNKNOWN = "Answer in one word or a short phrase; if the picture does not show it, say unanswerable."
YES_NO = "Answer yes or no."
LETTERS = "ABCDEFGHIJ"


class Item(NamedTuple):
    """What a reader takes from one row; ``answer`` where it is not the most common of ``answers``."""

    image: Path | None
    question: str
    answers: tuple[str, ...] = ()
    meta: Record | None = None
    answer: str | None = None


class VqaDataset(Dataset):
    """Questions about images, one sample per question, in the file's order.

    Args:
        root: folder with the layout of the data set.
        split: of the data set.
        instruction: ends every question, on a line of its own; empty for none. By default the class's.
        checks: see `t4s_helpers.data.dataset.Dataset`.

    Attributes:
        title: the data set's name, the beginning of ids.
        rule: handed on as ``meta["rule"]``, see the module.
    """

    title = ""
    rule = "vqav2"
    instruction = SHORT

    def __init__(self, root: str | Path, split: str, instruction: str | None = None, **checks: Any):
        self.root, self.split = Path(root), split
        if instruction is not None:
            self.instruction = instruction
        super().__init__(self.title, split, "vqa", self.root, self.questions(), **checks)

    @abstractmethod
    def questions(self) -> Sequence[tuple[Any, Any]]:
        """For each question of the file its own id, and what `read` wants to know of it."""

    @abstractmethod
    def read(self, number: Any, row: Any) -> Item:
        """What a question holds, or a `t4s_helpers.data.dataset.BadRow`."""

    def row_image(self, row: tuple[Any, Any]) -> Path:
        return self.read(*row).image

    def check(self, row: tuple[Any, Any]) -> None:
        image = self.row_image(row)
        if image is None:
            raise BadRow("question without a picture", f"Question {self.row_id(row)} has no picture.",
                         harmless=True)
        self.check_image(image, self.row_id(row))

    def make(self, row: tuple[Any, Any]) -> Sample:
        item = self.read(*row)
        question = f"{item.question}\n{self.instruction}" if self.instruction else item.question
        common = max(item.answers, key=item.answers.count, default=None)  # the first of several
        meta = {"question_id": row[0], "dataset": self.name, "rule": self.rule, "answers": item.answers,
                **(item.meta or {})}
        return Sample(self.row_id(row), item.image, (), None, "vqa", self.split, question,
                      common if item.answer is None else item.answer, meta)

    def _rows(self, path: Path, name: str = "", key: str = "question_id",
              lines: bool = False) -> list[tuple[Any, Record]]:
        """The objects of a file with their ids."""
        return [(row.get(key), row) for row in list_of(read_json(path, lines=lines), path, name)]


class VqaV2(VqaDataset):
    """VQAv2 (Goyal et al., CVPR 2017), scored by the consensus of ten annotators.

    The answers of the tests are not public.
    """

    title = "vqav2"

    def questions(self) -> Sequence[tuple[Any, Record]]:
        self._photos, self._answers = self.split.replace("test-dev", "test"), None
        if not self.split.startswith("test"):
            path = self.root / f"v2_mscoco_{self.split}_annotations.json"
            self._answers = {number: self._consensus(row) for number, row in self._rows(path, "annotations")}
        return self._rows(self.root / f"v2_OpenEnded_mscoco_{self.split}_questions.json", "questions")

    def _consensus(self, row: Record) -> tuple[str, tuple[str, ...]]:
        best, answers = needed(row, self.root, "multiple_choice_answer", "answers")
        return best, tuple(one["answer"] for one in answers)

    def read(self, number: Any, row: Record) -> Item:
        _, image, question = needed(row, self.root, "question_id", "image_id", "question")
        path = self.root / self._photos / f"COCO_{self._photos}_{int(image):012d}.jpg"
        if self._answers is None:
            return Item(path, question)
        if number not in self._answers:
            raise BadRow("question without an answer", f"Question {number!r} of VQAv2 {self._photos} "
                         "has no annotation; fetch the two files of one release.")
        best, answers = self._answers[number]
        return Item(path, question, answers, {"image_id": image}, best)


class Gqa(VqaDataset):
    """GQA, balanced questions (Hudson & Manning, CVPR 2019)."""

    title, rule = "gqa", "exact"

    def questions(self) -> Sequence[tuple[str, Record]]:
        name = f"{self.split}_balanced_questions.json"
        return list(_entries(first_there(self.root, f"questions1.2/{name}", name)).items())

    def read(self, number: str, row: Record) -> Item:
        image, question = needed(row, self.root, "imageId", "question")
        answers = () if row.get("answer") is None else (row["answer"],)
        return Item(self.root / "images" / f"{image}.jpg", question, answers, {"image_id": image})


class VizWiz(VqaDataset):
    """VizWiz-VQA (Gurari et al., CVPR 2018), scored by the consensus of ten annotators."""

    title, instruction = "vizwiz", UNKNOWN

    def questions(self) -> Sequence[tuple[str, Record]]:
        path = first_there(self.root, f"Annotations/{self.split}.json", f"{self.split}.json")
        return [(Path(str(image)).stem, row) for image, row in self._rows(path, key="image")]

    def read(self, number: str, row: Record) -> Item:
        image, question = needed(row, self.root, "image", "question")
        answers = tuple(one["answer"] for one in row.get("answers", ()))
        meta = {"answerable": row["answerable"]} if "answerable" in row else {}
        return Item(self.root / self.split / image, question, answers, meta)


class ScienceQa(VqaDataset):
    """ScienceQA (Lu et al., NeurIPS 2022): choices by letter; only questions with a picture.

    Questions without a picture are in ``excluded``; the published counts include them. ``hint=False``
    leaves out the text that some questions come with.
    """

    title, rule, instruction = "scienceqa", "exact", LETTER

    def __init__(self, root: str | Path, split: str, hint: bool = True, **options: Any):
        self.hint = hint
        super().__init__(root, split, **options)

    def questions(self) -> Sequence[tuple[str, Record | None]]:
        path = self.root / "pid_splits.json"
        parts = read_json(path, "The list of splits")
        if self.split not in parts:
            raise SampleError(f"{path} has no split {self.split!r}.")
        problems = _entries(self.root / "problems.json")
        return [(str(number), problems.get(str(number))) for number in parts[self.split]]

    def read(self, number: str, row: Record | None) -> Item:
        if row is None:
            raise BadRow("question without a text", f"Question {number!r} of ScienceQA is listed in "
                         "pid_splits.json, but problems.json does not have it; fetch both again.")
        question, choices, right = needed(row, self.root, "question", "choices", "answer")
        if not (isinstance(right, int) and 0 <= right < len(choices) <= len(LETTERS)):
            raise BadRow("answer outside the choices", f"Question {number!r} of ScienceQA has the "
                         f"answer {right!r} to {len(choices)} choices; fetch problems.json again.")
        lines = [row.get("hint") if self.hint else "", question,
                 *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices))]
        image = row.get("image")
        return Item(self.root / "images" / self.split / number / image if image else None,
                    "\n".join(line for line in lines if line), (LETTERS[right],),
                    {"choices": tuple(choices), "subject": row.get("subject")})


class TextVqa(VqaDataset):
    """TextVQA 0.5.1 (Singh et al., CVPR 2019), scored by the consensus of ten annotators."""

    title = "textvqa"

    def questions(self) -> Sequence[tuple[Any, Record]]:
        return self._rows(self.root / f"TextVQA_0.5.1_{self.split}.json", "data")

    def read(self, number: Any, row: Record) -> Item:
        _, image, question = needed(row, self.root, "question_id", "image_id", "question")
        photos = "test_images" if self.split == "test" else "train_images"
        return Item(self.root / photos / f"{image}.jpg", question, tuple(row.get("answers") or ()),
                    {"image_id": image})


class Pope(VqaDataset):
    """POPE on COCO (Li et al., EMNLP 2023): is an object there, yes or no.

    ``kind`` is ``random``, ``popular`` or ``adversarial``. The release of ``random`` that LLaVA-1.5 was
    scored on has 2,910 questions, the present one 3,000.
    """

    rule, instruction = "yes-no", YES_NO

    def __init__(self, root: str | Path, split: str, kind: str = "random", **options: Any):
        self.title = f"pope-{kind}"
        super().__init__(root, split, **options)

    def questions(self) -> Sequence[tuple[Any, Record]]:
        name = f"coco_{self.title.replace('-', '_')}.json"
        return self._rows(first_there(self.root, name, f"coco/{name}"), lines=True)

    def read(self, number: Any, row: Record) -> Item:
        _, image, question, label = needed(row, self.root, "question_id", "image", "text", "label")
        if label not in ("yes", "no"):
            raise BadRow("answer outside the choices", f"Question {number!r} of POPE has the label "
                         f"{label!r}, neither yes nor no; fetch the file again.")
        return Item(self.root / "val2014" / image, question, (label,))


class LlavaMix(Dataset):
    """LLaVA-1.5's instruction mix of 665k conversations (Liu et al., CVPR 2024), for training.

    Items are `t4s_helpers.data.mixtures.Conversation`; their ids are row numbers, as the file's own
    repeat. Some have no picture; the others' are where the rows of the file say. ``checks`` are those of
    `t4s_helpers.data.dataset.Dataset`.
    """

    def __init__(self, root: str | Path, split: str, **checks: Any):
        path = Path(root) / "llava_v1_5_mix665k.json"
        rows = list(enumerate(list_of(read_json(path), path)))
        super().__init__("llava-665k", split, "conversation", path, rows, **checks)

    def row_image(self, row: tuple[int, Record]) -> Path | None:
        image = row[1].get("image")
        return self.source.parent / image if image else None

    def check(self, row: tuple[int, Record]) -> None:
        list(self._turns(row))
        if image := self.row_image(row):
            self.check_image(image, self.row_id(row))

    def make(self, row: tuple[int, Record]) -> Conversation:
        return Conversation(self.row_id(row), self.row_image(row), tuple(self._turns(row)),
                            {"dataset": self.name, "id": row[1].get("id")})

    def _turns(self, row: tuple[int, Record]) -> Iterator[tuple[str, str]]:
        number, said = row[0], row[1].get("conversations")
        if not isinstance(said, list) or not said or len(said) % 2:
            raise BadRow("broken conversation", f"Row {number} of {self.source} has no pairs of "
                         "question and answer; fetch the file again.")
        for asked, answered in zip(said[::2], said[1::2]):
            if (asked.get("from"), answered.get("from")) != ("human", "gpt"):
                raise BadRow("broken conversation", f"Row {number} of {self.source} is not "
                             "question and answer in turn; fetch the file again.")
            # The chat template decides where the picture goes.
            yield asked["value"].replace("<image>", "").strip(), answered["value"].strip()


def _entries(path: Path) -> dict[str, Record]:
    """The questions of a file that keeps them by their ids."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise SampleError(f"{path} holds no JSON object of questions; fetch the official file.")
    return found
