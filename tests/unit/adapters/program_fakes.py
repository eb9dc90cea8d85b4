"""A provider inside the process, behind DSPy's own engine contract, and configurations to go with it."""

import dspy
from dspy import lm15

from serve_app.config import ProgramConfig
from serve_app.messages import Call, Level


def chat_reply(**fields):
    """A reply in the form that DSPy's chat adapter asks for."""
    sections = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items())
    return f"{sections}\n\n[[ ## completed ## ]]"


class Provider:
    """Gives ``replies`` in turn, the last one for ever; an exception among them is raised."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []
        self.contexts = []

    def complete(self, request):
        self.requests.append(request)
        self.contexts.append(dspy.settings.copy())
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, BaseException):
            raise reply
        return lm15.Response(
            id="reply",
            model=request.model,
            message=lm15.Message.assistant(reply),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=3, output_tokens=5, total_tokens=8),
        )

    @property
    def prompt(self):
        """Everything that the last request said."""
        return self.prompts[-1]

    @property
    def prompts(self):
        return [
            f"{request.system or ''}\n" + "\n".join(message.text or repr(message.parts) for message in request.messages)
            for request in self.requests
        ]

    def lm(self, **options):
        return dspy.LM(
            "openai/fake", engine=self, async_engine=AsyncProvider(self), cache=False, num_retries=0, **options
        )


class AsyncProvider:
    def __init__(self, provider):
        self.provider = provider

    async def complete(self, request):
        return self.provider.complete(request)


def config(program, **settings):
    levels = settings.pop("levels", {})
    return ProgramConfig.model_validate(
        {"name": "sample", "program": program, "levels": {"full": {"models": ["large"]}, **levels}, **settings}
    )


def call(inputs, level=Level.FULL, remaining_s=30.0):
    return Call("c1", "r1", "sample", inputs, remaining_s, level=level)
