"""DSPy's deployment tutorial (https://dspy.ai/tutorials/deployment/): a FastAPI application around one program.

``PEER_CALL`` chooses how the program is called: ``asyncify`` runs it in four threads, as the tutorial does, ``acall``
on the event loop, which the tutorial does not do and which is faster.
"""

import os

import dspy
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
lm = dspy.LM(f"openai/{os.environ['PEER_MODEL']}", api_base=os.environ["PEER_API_BASE"], api_key="x", cache=False)
dspy.configure(lm=lm, async_max_workers=4)
program = dspy.Predict("question -> answer")
call = dspy.asyncify(program) if os.environ["PEER_CALL"] == "asyncify" else program.acall


class Question(BaseModel):
    """What is asked."""

    text: str


@app.get("/health")
async def health() -> dict[str, str]:
    """Whether it runs."""
    return {"status": "ok"}


@app.post("/predict")
async def predict(question: Question) -> dict[str, object]:
    """The program's answer."""
    result = await call(question=question.text)
    return {"status": "success", "data": result.toDict()}
