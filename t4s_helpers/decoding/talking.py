"""A conversation in several turns: the next question is asked after what was said before."""

from __future__ import annotations

from ..model.backbones import Backbone
from ..data.prompts import Turn
from ..model.training import ConversationEncoder


class AskedAfter(str):
    """A question together with the exchanges before it, so that it goes where a question goes."""

    before: tuple[Turn, ...] = ()

    def __new__(cls, question: str, before=()):
        made = super().__new__(cls, question)
        made.before = tuple(before)
        return made


class TalkingEncoder(ConversationEncoder):
    """A `ConversationEncoder` that puts the exchanges before a question before it."""

    def prompt_text(self, turns, image: bool = True) -> str:
        before = getattr(turns[0].question, "before", ())
        return super().prompt_text([*before, *turns], image)


class Talking(Backbone):
    """A backbone whose questions may be `AskedAfter` others.

    What was said goes back in as text: the tokenizer cuts it anew, which need not give the tokens that
    the model wrote.
    """

    @property
    def encoder(self):
        return TalkingEncoder(self.processor, self.spec.n_image_tokens,
                              dtype=getattr(self.model, "dtype", None))


def talking(backbone: Backbone) -> Talking:
    """The same model and processor, asked in conversations."""
    return Talking(backbone.spec, backbone.model, backbone.processor)
