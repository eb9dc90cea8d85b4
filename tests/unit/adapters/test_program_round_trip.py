"""What is written where a call is admitted is read where its program runs, and answers look as their schema says."""

import datetime as dt
import json
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Self, TypeVar

import dspy
import program_samples
import pytest
from program_fakes import Provider, call, chat_reply, config
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Json,
    ModelWrapValidatorHandler,
    PlainSerializer,
    PlainValidator,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_program import Program, load_program
from serve_app.deployments.requests import RequestReader
from serve_app.errors import ConfigError, InvalidInputs, ProgramError

T = TypeVar("T")


class Letter(BaseModel):
    sender: str = Field(alias="from")
    reply_to: str = Field("", validation_alias="replyTo")


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")
    first_name: str

    @computed_field
    @property
    def initial(self) -> str:
        return self.first_name[:1]


class Customer(BaseModel):
    name: str
    number: str = Field("", exclude=True)


class Booking(BaseModel):
    day: dt.date
    until: Annotated[dt.date, PlainSerializer(lambda day: day.strftime("%d %b"))]

    @field_serializer("day")
    def _written(self, day: dt.date) -> str:
        return day.strftime("%d/%m/%Y")


class Parcel(BaseModel):
    """Its validator takes a certain key for granted, and so does not read what itself has read."""

    weight: str

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: dict[str, str]) -> dict[str, str]:
        return {"weight": data["kg"]}


class Shipped(TypedDict):
    parcel: Parcel


class Ships(dspy.Module):
    async def aforward(self, given: dict[str, str]) -> Shipped:
        return {"parcel": given}


class Money:
    """No type that pydantic knows."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    __hash__ = None


def in_cents(value: object) -> Money:
    return value if isinstance(value, Money) else Money(round(100 * float(str(value))))


Price = Annotated[
    Money,
    PlainValidator(in_cents, json_schema_input_type=float),
    PlainSerializer(lambda money: money.cents / 100, return_type=float),
]


class Item(BaseModel):
    price: Price


class Priced(BaseModel, Generic[T]):
    price: T


class Span(BaseModel):
    begin: int
    end: int

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, value: object, read: ModelWrapValidatorHandler[Self]) -> Self:
        begin, _, end = str(value).partition(":")
        return value if isinstance(value, Span) else read({"begin": begin, "end": end})

    @model_serializer
    def _written(self) -> str:
        return f"{self.begin}:{self.end}"


class Kinds(BaseModel):
    """Each field's name is what another one is called by callers."""

    type_: str = Field(alias="type")
    type: str = Field(alias="kind")


class Written(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    name: str = Field(validation_alias="in", serialization_alias="out")


@dataclass
class Order:
    customer: Customer


class Basket(TypedDict):
    customers: list[Customer]


class Tags(RootModel[list[str]]):
    pass


class Picture(BaseModel):
    model_config = ConfigDict(extra="allow")
    image: dspy.Image
    taken_by: str = Field(alias="takenBy")
    tags: Tags = Tags([])


PICTURE = {"image": {"url": "https://example.com/x.png"}, "takenBy": "Ann", "tags": ["sea"], "camera": "Box"}


def served(monkeypatch: pytest.MonkeyPatch, *, takes: Any = str, gives: Any = str) -> Program:
    fields = {"given": (takes, dspy.InputField()), "answer": (gives, dspy.OutputField())}
    monkeypatch.setattr(program_samples, "Served", dspy.Signature(fields), raising=False)
    return load_program(config("program_samples:Served"))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (Letter, {"from": "Ann", "replyTo": "Bob"}),
        (list[Letter] | None, [{"from": "Ann"}]),
        (Camel, {"firstName": "Ann"}),
        (Customer, {"name": "Ann", "number": "7"}),
        (dict[str, list[Customer]], {"a": [{"name": "Ann", "number": "7"}]}),
        (Booking, {"day": "2026-05-06", "until": "2026-05-07"}),
        (Json[list[int]], "[1, 2]"),
        (Picture, PICTURE),
        (Item, {"price": 1.5}),
        (Priced[Price], {"price": 1.5}),
        (Span | None, "1:2"),
        (Kinds, {"type": "T", "kind": "K"}),
        (Written, {"in": "Ann"}),
        (Order, {"customer": {"name": "Ann", "number": "7"}}),
        (Basket, {"customers": [{"name": "Ann", "number": "7"}]}),
        (dspy.History, {"messages": [{"question": "q", "answer": "a"}]}),
    ],
)
def test_an_input_reaches_the_program_as_it_was_sent_whatever_its_type_writes(kind, sent, monkeypatch) -> None:
    program = served(monkeypatch, takes=kind)
    admitted = RequestReader({}, [], 600).inputs(program, {"given": sent})
    given = program.python_inputs(call(json.loads(json.dumps(admitted))))["given"]
    assert given == program.inputs.model_validate({"given": sent}).given


@pytest.mark.parametrize(("kind", "said"), [(Camel, {"firstName": "Ann", "initial": "A"}), (Picture, PICTURE)])
async def test_an_answer_has_the_names_that_its_schema_has(kind, said, monkeypatch) -> None:
    program = served(monkeypatch, gives=kind)
    sent = json.dumps({name: value for name, value in said.items() if name != "initial"})
    with call_scope(20.0):
        answer = await program.run(call({"given": "x"}), Provider(chat_reply(answer=sent)).lm())
    assert answer.outputs == {"answer": said}
    schema = program.outputs.model_json_schema(mode="serialization")
    shape = schema["properties"]["answer"]
    promised = shape if "properties" in shape else schema["$defs"][kind.__name__]
    assert promised["properties"].keys() <= said.keys()


class Wrapped(BaseModel):
    key: SecretStr | None = None


@pytest.mark.parametrize("kind", [SecretStr, list[SecretStr], Wrapped])
def test_a_secret_is_no_input_since_the_program_would_get_asterisks(kind, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="asterisks"):
        served(monkeypatch, takes=kind)


def test_inputs_that_are_no_mapping_are_said_to_be_none(monkeypatch) -> None:
    with pytest.raises(InvalidInputs, match="inputs must be an object"):
        RequestReader({}, [], 600).inputs(served(monkeypatch), 7)


@pytest.mark.parametrize("weight", ["secret", None])
def test_a_validator_that_raises_a_type_error_is_the_programs_failure_too(weight, monkeypatch) -> None:
    with pytest.raises(ProgramError):
        RequestReader({}, [], 600).inputs(served(monkeypatch, takes=Parcel), {"given": weight})


def test_a_validator_that_raises_anything_is_the_programs_failure_where_calls_are_admitted(monkeypatch, caplog) -> None:
    program = served(monkeypatch, takes=Parcel)
    with pytest.raises(ProgramError) as caught:
        RequestReader({}, [], 600).inputs(program, {"given": {"weight": "secret"}})
    assert "secret" not in str(caught.value)
    assert [record.message for record in caplog.records] == ["program.raised"]


async def test_a_validator_that_raises_anything_is_the_programs_failure_where_it_runs(monkeypatch, caplog) -> None:
    taking = served(monkeypatch, takes=Parcel)
    monkeypatch.setattr(program_samples, "Served", Ships)
    giving = load_program(config("program_samples:Served"))
    sent = call({"given": {"weight": "2"}})
    with call_scope(20.0):
        for program in (taking, giving):
            with pytest.raises(ProgramError):
                await program.run(sent, Provider("unused").lm())
        (outcome,) = await taking.run_batch([sent], Provider("unused").lm())
    assert isinstance(outcome, ProgramError)
    assert [record.message for record in caplog.records] == ["program.raised"] * 3
