"""Visual questions on official files: VQAv2, GQA, VizWiz, ScienceQA, TextVQA, POPE, LLaVA's mix.

A sample has the task ``vqa``, no labels, and a ``question`` that ends with how to answer (our own
wording, an argument of each reader). ``answer`` is the one to train on; ``meta["answers"]`` holds all
true ones, and ``meta["rule"]`` says how they are compared: ``exact`` or ``vqav2``, the rules of
`t4s_helpers.evaluation.metrics.VQAAccuracy`, or ``yes-no`` (accuracy and F1 of "yes", POPE). Splits without
public answers have ``answer=None`` and no answers: they can be asked, not scored.

Each class says where its files come from and how they lie below ``root``. A further data set is one
class with two methods, `VqaDataset.rows` and `VqaDataset.read`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .dataset import BadRow, Dataset, Inspection, Record, list_of, progress, read_json, read_json_lines
from .mixtures import Conversation
from .sample import NoMasks, Sample, SampleError

SHORT = "Answer in one word or a short phrase."
LETTER = "Answer with the letter of the right choice."
UNKNOWN = "Answer in one word or a short phrase; if the picture does not show it, say unanswerable."
YES_NO = "Answer yes or no."
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Item:
    """What a reader takes from one row; ``number`` is the question's own id."""

    number: Any
    image: Path | None
    question: str = ""
    answer: str | None = None
    answers: tuple[str, ...] = ()
    meta: Record = field(default_factory=dict)


class VqaDataset(Dataset):
    """Questions about images, one sample per question, in the file's order.

    Args:
        root: folder with the layout that the class shows.
        split: of the data set.
        instruction: ends every question, on a line of its own; empty for none. By default the class's.
        checks: see `t4s_helpers.data.dataset.Inspection`.

    Attributes:
        title: the data set's name, the beginning of ids.
        rule: handed on as ``meta["rule"]``, see the module.
    """

    title = ""
    rule = "vqav2"
    instruction = SHORT
    kind = "vqa"

    def __init__(self, root: str | Path, split: str, instruction: str | None = None, **checks: Any):
        super().__init__(self.title, split, self.kind)
        self.root, inspection = Path(root), Inspection(**checks)
        if instruction is not None:
            self.instruction = instruction
        rows = self.rows()
        inspection.count(len(rows), f"{split!r} of {self.name}")
        self._rows = [row for n, row in enumerate(progress(rows, f"{self.name} {split}", "questions"))
                      if self._usable(n, row, inspection)]
        self.excluded = tuple(inspection.excluded)

    @abstractmethod
    def rows(self) -> Sequence[Any]:
        """The questions of the file."""

    @abstractmethod
    def read(self, row: Any) -> Item:
        """What a row holds, or a `t4s_helpers.data.dataset.BadRow`."""

    def __len__(self) -> int:
        return len(self._rows)

    def id(self, index: int) -> str:
        return self._name(self.read(self._rows[index]))

    def image(self, index: int) -> Path:
        return self.read(self._rows[index]).image

    def sample(self, index: int) -> Sample:
        item = self.read(self._rows[index])
        question = f"{item.question}\n{self.instruction}" if self.instruction else item.question
        meta = {"question_id": item.number, "dataset": self.name, "rule": self.rule,
                "answers": item.answers, **item.meta}
        return Sample(self._name(item), item.image, (), NoMasks(item.image), "vqa", self.split, question,
                      item.answer, meta)

    def _name(self, item: Item) -> str:
        return f"{self.name}/{self.split}/{item.number}"

    def _usable(self, n: int, row: Any, inspection: Inspection) -> bool:
        name = f"{self.name}/{self.split}, row {n}"
        try:
            item = self.read(row)
            name = self._name(item)
            inspection.unique(name)
            if item.image is not None:
                inspection.photo(item.image, name)
            elif self.task == "vqa":
                raise BadRow("question without a picture", f"Question {name} has no picture.",
                             harmless=True)
        except BadRow as fault:
            inspection.leave_out(name, fault)
            return False
        return True

    def _file(self, *names: str) -> Path:
        """The first of these files below the root that exists, else the first."""
        paths = [self.root / name for name in names]
        return next((path for path in paths if path.is_file()), paths[0])


class VqaV2(VqaDataset):
    """VQAv2 (Goyal et al., CVPR 2017), scored by the consensus of ten annotators.

    Layout: ``v2_OpenEnded_mscoco_<split>_questions.json``, ``v2_mscoco_<split>_annotations.json``
    (train2014 and val2014; the tests' are not public) and COCO's folders of photos ``train2014``,
    ``val2014``, ``test2015``, from https://visualqa.org/download.html.
    """

    title = "vqav2"

    def rows(self) -> Sequence[Record]:
        path = self._file(f"v2_OpenEnded_mscoco_{self.split}_questions.json")
        questions = list_of(read_json(path), path, "questions")
        self._photos, self._answers = self.split.replace("test-dev", "test"), None
        if not self.split.startswith("test"):
            path = self._file(f"v2_mscoco_{self.split}_annotations.json")
            found = list_of(read_json(path), path, "annotations")
            self._answers = {row["question_id"]: _consensus(row) for row in found}
        return questions

    def read(self, row: Record) -> Item:
        number, image, question = _needed(row, "question_id", "image_id", "question")
        path = self.root / self._photos / f"COCO_{self._photos}_{int(image):012d}.jpg"
        if self._answers is None:
            return Item(number, path, question)
        if number not in self._answers:
            raise BadRow("question without an answer", f"Question {number!r} of VQAv2 {self._photos} "
                         "has no annotation; fetch the two files of one release.")
        return Item(number, path, question, *self._answers[number], {"image_id": image})


def _consensus(row: Record) -> tuple[str, tuple[str, ...]]:
    best, answers = _needed(row, "multiple_choice_answer", "answers")
    return best, tuple(one["answer"] for one in answers)


class Gqa(VqaDataset):
    """GQA, balanced questions (Hudson & Manning, CVPR 2019).

    Layout: ``questions1.2/<split>_balanced_questions.json`` (or beside the root) and
    ``images/<imageId>.jpg``, from https://cs.stanford.edu/people/dorarad/gqa/download.html.
    """

    title, rule = "gqa", "exact"

    def rows(self) -> Sequence[tuple[str, Record]]:
        name = f"{self.split}_balanced_questions.json"
        return list(_entries(self._file(f"questions1.2/{name}", name)).items())

    def read(self, row: tuple[str, Record]) -> Item:
        number, entry = row
        image, question = _needed(entry, "imageId", "question")
        answer = entry.get("answer")
        return Item(number, self.root / "images" / f"{image}.jpg", question, answer,
                    () if answer is None else (answer,), {"image_id": image})


class VizWiz(VqaDataset):
    """VizWiz-VQA (Gurari et al., CVPR 2018), scored by the consensus of ten annotators.

    Layout: ``Annotations/<split>.json`` (or ``<split>.json``) and ``<split>/*.jpg``, from
    https://vizwiz.org/tasks-and-datasets/vqa.
    """

    title, instruction = "vizwiz", UNKNOWN

    def rows(self) -> Sequence[Record]:
        path = self._file(f"Annotations/{self.split}.json", f"{self.split}.json")
        return list_of(read_json(path), path)

    def read(self, row: Record) -> Item:
        image, question = _needed(row, "image", "question")
        answers = tuple(one["answer"] for one in row.get("answers", ()))
        meta = {"answerable": row["answerable"]} if "answerable" in row else {}
        return Item(Path(image).stem, self.root / self.split / image, question, _most_common(answers),
                    answers, meta)


class ScienceQa(VqaDataset):
    """ScienceQA (Lu et al., NeurIPS 2022): choices by letter; only questions with a picture.

    Layout: ``problems.json``, ``pid_splits.json`` and ``images/<split>/<id>/image.png``, from
    https://github.com/lupantech/ScienceQA. Questions without a picture are in ``excluded``; the
    published counts include them. ``hint=False`` leaves out the text that some questions come with.
    """

    title, rule, instruction = "scienceqa", "exact", LETTER

    def __init__(self, root: str | Path, split: str, hint: bool = True, **options: Any):
        self.hint = hint
        super().__init__(root, split, **options)

    def rows(self) -> Sequence[str]:
        path = self._file("pid_splits.json")
        parts = read_json(path, "The list of splits")
        if self.split not in parts:
            raise SampleError(f"{path} has no split {self.split!r}.")
        self._problems = _entries(self._file("problems.json"))
        return [str(number) for number in parts[self.split]]

    def read(self, row: str) -> Item:
        if row not in self._problems:
            raise BadRow("question without a text", f"Question {row!r} of ScienceQA is listed in "
                         "pid_splits.json, but problems.json does not have it; fetch both again.")
        problem = self._problems[row]
        question, choices, right = _needed(problem, "question", "choices", "answer")
        if not (isinstance(right, int) and 0 <= right < len(choices) <= len(LETTERS)):
            raise BadRow("answer outside the choices", f"Question {row!r} of ScienceQA has the "
                         f"answer {right!r} to {len(choices)} choices; fetch problems.json again.")
        lines = [problem.get("hint") if self.hint else "", question,
                 *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices))]
        image = problem.get("image")
        path = self.root / "images" / self.split / row / image if image else None
        return Item(row, path, "\n".join(line for line in lines if line), LETTERS[right],
                    (LETTERS[right],), {"choices": tuple(choices), "subject": problem.get("subject")})


class TextVqa(VqaDataset):
    """TextVQA 0.5.1 (Singh et al., CVPR 2019), scored by the consensus of ten annotators.

    Layout: ``TextVQA_0.5.1_<split>.json``, ``train_images/*.jpg`` (train and val) and
    ``test_images/*.jpg``, from https://textvqa.org/dataset.
    """

    title = "textvqa"

    def rows(self) -> Sequence[Record]:
        path = self._file(f"TextVQA_0.5.1_{self.split}.json")
        return list_of(read_json(path), path, "data")

    def read(self, row: Record) -> Item:
        number, image, question = _needed(row, "question_id", "image_id", "question")
        answers = tuple(row.get("answers") or ())
        photos = "test_images" if self.split == "test" else "train_images"
        return Item(number, self.root / photos / f"{image}.jpg", question, _most_common(answers), answers,
                    {"image_id": image})


class Pope(VqaDataset):
    """POPE on COCO (Li et al., EMNLP 2023): is an object there, yes or no.

    Layout: ``coco_pope_<kind>.json`` (a JSON object a line; also below ``coco/``) and COCO's
    ``val2014/*.jpg``, from https://github.com/AoiDragon/POPE (output/coco). ``kind`` is ``random``,
    ``popular`` or ``adversarial``. The release of ``random`` that LLaVA-1.5 was scored on has 2,910
    questions, the present one 3,000.
    """

    rule, instruction = "yes-no", YES_NO

    def __init__(self, root: str | Path, split: str, kind: str = "random", **options: Any):
        self.title = f"pope-{kind}"
        super().__init__(root, split, **options)

    def rows(self) -> Sequence[Record]:
        name = f"coco_{self.title.replace('-', '_')}.json"
        return read_json_lines(self._file(name, f"coco/{name}"))

    def read(self, row: Record) -> Item:
        number, image, question, label = _needed(row, "question_id", "image", "text", "label")
        if label not in ("yes", "no"):
            raise BadRow("answer outside the choices", f"Question {number!r} of POPE has the label "
                         f"{label!r}, neither yes nor no; fetch the file again.")
        return Item(number, self.root / "val2014" / image, question, label, (label,))


class LlavaMix(VqaDataset):
    """LLaVA-1.5's instruction mix of 665k conversations (Liu et al., CVPR 2024), for training.

    Items are `t4s_helpers.data.mixtures.Conversation`; their ids are row numbers, as the file's own
    repeat. Some have no picture. Layout: ``llava_v1_5_mix665k.json`` from
    https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K and the photos where its rows say:
    ``coco/train2017``, ``gqa/images``, ``ocr_vqa/images``, ``textvqa/train_images``, ``vg/VG_100K``,
    ``vg/VG_100K_2``.
    """

    title, rule, instruction, kind = "llava-665k", "none", "", "conversation"

    def rows(self) -> Sequence[tuple[int, Record]]:
        path = self._file("llava_v1_5_mix665k.json")
        return list(enumerate(list_of(read_json(path), path)))

    def sample(self, index: int) -> Conversation:
        item = self.read(self._rows[index])
        return Conversation(self._name(item), item.image, item.meta["turns"],
                            {"dataset": self.name, "id": item.meta["id"]})

    def read(self, row: tuple[int, Record]) -> Item:
        number, entry = row
        said, image = entry.get("conversations"), entry.get("image")
        if not isinstance(said, list) or not said or len(said) % 2:
            raise BadRow("broken conversation", f"Row {number} of {self.root}'s mix has no pairs of "
                         "question and answer; fetch the file again.")
        return Item(number, self.root / image if image else None,
                    meta={"turns": tuple(self._turns(said, number)), "id": entry.get("id")})

    def _turns(self, said: list[Record], number: int) -> Iterator[tuple[str, str]]:
        for asked, answered in zip(said[::2], said[1::2]):
            if (asked.get("from"), answered.get("from")) != ("human", "gpt"):
                raise BadRow("broken conversation", f"Row {number} of {self.root}'s mix is not "
                             "question and answer in turn; fetch the file again.")
            # The chat template decides where the picture goes.
            yield asked["value"].replace("<image>", "").strip(), answered["value"].strip()


def _entries(path: Path) -> dict[str, Record]:
    """The questions of a file that keeps them by their ids."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise SampleError(f"{path} holds no JSON object of questions; fetch the official file.")
    return found


def _most_common(answers: tuple[str, ...]) -> str | None:
    """The most common answer, the first of several; None without any."""
    return max(answers, key=answers.count) if answers else None


def _needed(row: Any, *names: str) -> list[Any]:
    absent = [name for name in names if not isinstance(row, dict) or name not in row]
    if absent:
        raise BadRow("incomplete question", f"A question lacks {', '.join(absent)}: "
                     f"{str(row)[:120]}; fetch the official file.")
    return [row[name] for name in names]
