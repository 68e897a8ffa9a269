"""Visual questions on official files: VQAv2, GQA, VizWiz, ScienceQA, TextVQA, POPE, LLaVA's mix.

A sample has the task ``vqa``, no labels, and a ``question`` that ends with how to answer (our own
wording, an argument of each reader). ``answer`` is the one to train on; ``meta["answers"]`` holds all
true ones, and ``meta["rule"]`` says how they are compared: ``exact`` or ``vqav2``, the rules of
`t4s_helpers.evaluation.metrics.VQAAccuracy`, or ``yes-no`` (accuracy and F1 of "yes", POPE). Splits without
public answers have ``answer=None`` and no answers: they can be asked, not scored.

Each class says where its files come from and how they lie below ``root``.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .mixtures import Conversation
from .dataset import BadRow, Dataset, Guard, check_count
from .rows import Rows, Table, read_lines, read_rows
from .sample import NoMasks, Sample, SampleError, image_size

SHORT = "Answer in one word or a short phrase."
LETTER = "Answer with the letter of the right choice."
UNKNOWN = "Answer in one word or a short phrase; if the picture does not show it, say unanswerable."
YES_NO = "Answer yes or no."
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Item:
    """What a reader takes from one row."""

    number: Any
    """The question's own id."""
    image: Path | None
    question: str = ""
    answer: str | None = None
    answers: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


class VqaDataset(Dataset):
    """Questions about images, one sample per question, in the file's order.

    Parameters
    ----------
    name, split:
        Of the data set.
    rows:
        The questions of the file.
    read:
        Makes an :class:`Item` of a row, or raises :class:`~t4s_helpers.data.dataset.BadRow`.
    rule:
        Handed on as ``meta["rule"]``, see the module.
    instruction:
        Ends every question, on a line of its own; empty for none.
    published, counts, bad, verify:
        As in :func:`t4s_helpers.data.load`.
    """

    def __init__(self, name: str, split: str, rows: Sequence[Any], read: Callable[[Any], Item],
                 rule: str, instruction: str, published: Any = None, counts: str = "strict",
                 bad: str = "refuse", verify: bool = True, task: str = "vqa"):
        super().__init__(name, split, task)
        self.rule, self.instruction = rule, instruction
        self._rows, self._read = rows, read
        check_count(len(rows), published, f"{split!r} of {name}", counts)
        self._index(Guard(bad), verify)

    def __len__(self) -> int:
        return len(self._kept)

    def id(self, index: int) -> str:
        return self._name(self._item(index))

    def image(self, index: int) -> Path:
        return self._item(index).image

    def sample(self, index: int) -> Sample:
        item = self._item(index)
        question = f"{item.question}\n{self.instruction}" if self.instruction else item.question
        return Sample(
            self._name(item), item.image, (), NoMasks(item.image), "vqa", self.split, question,
            item.answer,
            {"question_id": item.number, "dataset": self.name, "rule": self.rule,
             "answers": item.answers, **item.meta},
        )

    def _item(self, index: int) -> Item:
        return self._read(self._rows[int(self._kept[index])])

    def _name(self, item: Item) -> str:
        return f"{self.name}/{self.split}/{item.number}"

    def _index(self, guard: Guard, verify: bool) -> None:
        """Check every row, and note which can be used."""
        from tqdm.auto import tqdm

        photos, seen, kept = _Photos(verify), set(), array("q")
        for n in tqdm(range(len(self._rows)), f"{self.name} {self.split}", unit=" questions",
                      disable=len(self._rows) < 20_000):
            name = f"{self.name}/{self.split}, row {n}"
            try:
                item = self._read(self._rows[n])
                name = self._name(item)
                if hash(name) in seen:
                    raise BadRow("duplicated id", f"Question {name} occurs twice; fetch the "
                                 "official file.")
                seen.add(hash(name))
                if item.image is not None:
                    photos.check(item.image, name)
                elif self.task == "vqa":
                    guard.report(name, BadRow("question without a picture",
                                              f"Question {name} has no picture."), True)
                    continue
                kept.append(n)
            except BadRow as fault:
                guard.report(name, fault)
        self._kept, self.excluded = np.asarray(kept), tuple(guard.excluded)


class _Photos:
    """Whether photos are there and are images; each looked at once."""

    def __init__(self, verify: bool):
        self.verify, self._fine = verify, set()
        self._faults: dict[Path, BadRow] = {}

    def check(self, path: Path, name: str) -> None:
        key = hash(path)
        if key in self._fine:
            return
        if path not in self._faults:
            fault = self._fault(path, name)
            if fault is None:
                self._fine.add(key)
                return
            self._faults[path] = fault
        raise self._faults[path]

    def _fault(self, path: Path, name: str) -> BadRow | None:
        if not path.is_file():
            return BadRow("missing image", f"The photo {path} of {name} does not exist; unpack the "
                          "photos again.")
        try:
            if self.verify:
                image_size(path)
        except SampleError as error:
            return BadRow("unreadable image", str(error))
        return None


class VqaV2(VqaDataset):
    """VQAv2 (Goyal et al., CVPR 2017), scored by the consensus of ten annotators.

    Layout: ``v2_OpenEnded_mscoco_<split>_questions.json``, ``v2_mscoco_<split>_annotations.json``
    (train2014 and val2014; the tests' are not public) and COCO's folders of photos ``train2014``,
    ``val2014``, ``test2015``, from https://visualqa.org/download.html.
    """

    def __init__(self, root: str | Path, split: str = "val2014", instruction: str = SHORT,
                 **options: Any):
        self.root = Path(root)
        found = read_rows(self.root / f"v2_OpenEnded_mscoco_{split}_questions.json")
        self._answers = None
        if not split.startswith("test"):
            path = self.root / f"v2_mscoco_{split}_annotations.json"
            rows = read_rows(path, {"annotations": ("question_id",)})
            self._answers = Table(_list_of(rows, "annotations", path), "question_id")
        self._photos = split.replace("test-dev", "test")
        super().__init__("vqav2", split, _list_of(found, "questions", self.root), self._read_row,
                         "vqav2", instruction, **options)

    def _read_row(self, row: Mapping[str, Any]) -> Item:
        number, image, question = _needed(row, "question_id", "image_id", "question")
        path = self.root / self._photos / f"COCO_{self._photos}_{int(image):012d}.jpg"
        if self._answers is None:
            return Item(number, path, question)
        if number not in self._answers:
            raise BadRow("question without an answer", f"Question {number!r} of VQAv2 {self._photos} "
                         "has no annotation; fetch the two files of one release.")
        best, answers = _needed(self._answers[number], "multiple_choice_answer", "answers")
        return Item(number, path, question, best, tuple(one["answer"] for one in answers),
                    {"image_id": image})


class Gqa(VqaDataset):
    """GQA, balanced questions (Hudson & Manning, CVPR 2019).

    Layout: ``questions1.2/<split>_balanced_questions.json`` (or beside the root) and
    ``images/<imageId>.jpg``, from https://cs.stanford.edu/people/dorarad/gqa/download.html.
    """

    def __init__(self, root: str | Path, split: str = "testdev", instruction: str = SHORT,
                 **options: Any):
        self.root = Path(root)
        name = f"{split}_balanced_questions.json"
        path = self.root / "questions1.2" / name
        if not path.is_file() and (self.root / name).is_file():
            path = self.root / name
        super().__init__("gqa", split, read_rows(path, keyed=True)[""], self._read_row, "exact",
                         instruction, **options)

    def _read_row(self, row: tuple[str, Mapping[str, Any]]) -> Item:
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

    def __init__(self, root: str | Path, split: str = "val", instruction: str = UNKNOWN,
                 **options: Any):
        self.root, self._split = Path(root), split
        path = self.root / "Annotations" / f"{split}.json"
        if not path.is_file() and (self.root / f"{split}.json").is_file():
            path = self.root / f"{split}.json"
        super().__init__("vizwiz", split, _list_of(read_rows(path), "", path), self._read_row,
                         "vqav2", instruction, **options)

    def _read_row(self, row: Mapping[str, Any]) -> Item:
        image, question = _needed(row, "image", "question")
        answers = tuple(one["answer"] for one in row.get("answers", ()))
        best = max(answers, key=answers.count) if answers else None  # of equals the first
        meta = {"answerable": row["answerable"]} if "answerable" in row else {}
        return Item(Path(image).stem, self.root / self._split / image, question, best, answers, meta)


class ScienceQa(VqaDataset):
    """ScienceQA (Lu et al., NeurIPS 2022): choices by letter; only questions with a picture.

    Layout: ``problems.json``, ``pid_splits.json`` and ``images/<split>/<id>/image.png``, from
    https://github.com/lupantech/ScienceQA. Questions without a picture are in ``excluded``; the
    published counts include them. ``hint=False`` leaves out the text that some questions come with.
    """

    def __init__(self, root: str | Path, split: str = "test", instruction: str = LETTER,
                 hint: bool = True, **options: Any):
        self.root, self._split, self._hint = Path(root), split, hint
        parts = read_rows(self.root / "pid_splits.json", what="The list of splits")
        if split not in parts:
            raise SampleError(f"{self.root / 'pid_splits.json'} has no split {split!r}.")
        problems = read_rows(self.root / "problems.json", keyed=True)[""]
        self._problems = problems
        self._place = {problems[n][0]: n for n in range(len(problems))}
        super().__init__("scienceqa", split, [str(n) for n in parts[split]], self._read_row,
                         "exact", instruction, **options)

    def _read_row(self, number: str) -> Item:
        if number not in self._place:
            raise BadRow("question without a text", f"Question {number!r} of ScienceQA is listed in "
                         "pid_splits.json, but problems.json does not have it; fetch both again.")
        row = self._problems[self._place[number]][1]
        question, choices, right = _needed(row, "question", "choices", "answer")
        if not (isinstance(right, int) and 0 <= right < len(choices) <= len(LETTERS)):
            raise BadRow("answer outside the choices", f"Question {number!r} of ScienceQA has the "
                         f"answer {right!r} to {len(choices)} choices; fetch problems.json again.")
        lines = [row.get("hint") if self._hint else "", question,
                 *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices))]
        image = row.get("image")
        path = self.root / "images" / self._split / number / image if image else None
        return Item(number, path, "\n".join(line for line in lines if line), LETTERS[right],
                    (LETTERS[right],), {"choices": tuple(choices), "subject": row.get("subject")})


class TextVqa(VqaDataset):
    """TextVQA 0.5.1 (Singh et al., CVPR 2019), scored by the consensus of ten annotators.

    Layout: ``TextVQA_0.5.1_<split>.json``, ``train_images/*.jpg`` (train and val) and
    ``test_images/*.jpg``, from https://textvqa.org/dataset.
    """

    def __init__(self, root: str | Path, split: str = "val", instruction: str = SHORT,
                 **options: Any):
        self.root = Path(root)
        self._photos = "test_images" if split == "test" else "train_images"
        path = self.root / f"TextVQA_0.5.1_{split}.json"
        super().__init__("textvqa", split, _list_of(read_rows(path), "data", path), self._read_row,
                         "vqav2", instruction, **options)

    def _read_row(self, row: Mapping[str, Any]) -> Item:
        number, image, question = _needed(row, "question_id", "image_id", "question")
        answers = tuple(row.get("answers") or ())
        best = max(answers, key=answers.count) if answers else None
        return Item(number, self.root / self._photos / f"{image}.jpg", question, best, answers,
                    {"image_id": image})


class Pope(VqaDataset):
    """POPE on COCO (Li et al., EMNLP 2023): is an object there, yes or no.

    Layout: ``coco_pope_<kind>.json`` (a JSON object a line; also below ``coco/``) and COCO's
    ``val2014/*.jpg``, from https://github.com/AoiDragon/POPE (output/coco). ``kind`` is ``random``,
    ``popular`` or ``adversarial``. The release of ``random`` that LLaVA-1.5 was scored on has 2,910
    questions, the present one 3,000.
    """

    def __init__(self, root: str | Path, split: str = "test", kind: str = "random",
                 instruction: str = YES_NO, **options: Any):
        self.root = Path(root)
        path = self.root / f"coco_pope_{kind}.json"
        if not path.is_file() and (self.root / "coco" / path.name).is_file():
            path = self.root / "coco" / path.name
        super().__init__(f"pope-{kind}", split, read_lines(path), self._read_row, "yes-no",
                         instruction, **options)

    def _read_row(self, row: Mapping[str, Any]) -> Item:
        number, image, question, label = _needed(row, "question_id", "image", "text", "label")
        if label not in ("yes", "no"):
            raise BadRow("answer outside the choices", f"Question {number!r} of POPE has the label "
                         f"{label!r}, neither yes nor no; fetch the file again.")
        return Item(number, self.root / "val2014" / image, question, label, (label,))


class LlavaMix(VqaDataset):
    """LLaVA-1.5's instruction mix of 665k conversations (Liu et al., CVPR 2024), for training.

    Items are :class:`~t4s_helpers.data.mixtures.Conversation`; their ids are row numbers, as the
    file's own repeat. Some have no picture. Layout: ``llava_v1_5_mix665k.json`` from
    https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K and the photos where its rows say:
    ``coco/train2017``, ``gqa/images``, ``ocr_vqa/images``, ``textvqa/train_images``, ``vg/VG_100K``,
    ``vg/VG_100K_2``.
    """

    def __init__(self, root: str | Path, split: str = "train", **options: Any):
        self.root = Path(root)
        path = self.root / "llava_v1_5_mix665k.json"
        rows = _list_of(read_rows(path), "", path)
        super().__init__("llava-665k", split, _Numbered(rows), self._read_row, "none", "",
                         task="conversation", **options)

    def sample(self, index: int) -> Conversation:
        item = self._item(index)
        return Conversation(self._name(item), item.image, item.meta["turns"],
                            {"dataset": self.name, "id": item.meta["id"]})

    def _read_row(self, numbered: tuple[int, Mapping[str, Any]]) -> Item:
        number, row = numbered
        said = row.get("conversations")
        if not isinstance(said, list) or not said or len(said) % 2:
            raise BadRow("broken conversation", f"Row {number} of {self.root}'s mix has no pairs of "
                         "question and answer; fetch the file again.")
        image = row.get("image")
        return Item(number, self.root / image if image else None,
                    meta={"turns": tuple(self._turns(said, number)), "id": row.get("id")})

    def _turns(self, said: list[Mapping[str, Any]], number: int) -> Iterator[tuple[str, str]]:
        for asked, answered in zip(said[::2], said[1::2]):
            if (asked.get("from"), answered.get("from")) != ("human", "gpt"):
                raise BadRow("broken conversation", f"Row {number} of {self.root}'s mix is not "
                             "question and answer in turn; fetch the file again.")
            # The picture's place is the chat template's matter.
            yield asked["value"].replace("<image>", "").strip(), answered["value"].strip()


class _Numbered(Sequence):
    """Rows as pairs of their number and themselves."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.rows[index]


def _list_of(found: Mapping[str, Any], name: str, path: Path) -> Rows:
    rows = found.get(name)
    if not isinstance(rows, Rows):
        wanted = f"a list '{name}' of objects" if name else "a list of objects"
        raise SampleError(f"{path} does not hold {wanted}; fetch the official file.")
    return rows


def _needed(row: Mapping[str, Any], *names: str) -> list[Any]:
    absent = [name for name in names if name not in row]
    if absent:
        raise BadRow("incomplete question", f"A question lacks {', '.join(absent)}: "
                     f"{str(row)[:120]}; fetch the official file.")
    return [row[name] for name in names]
