"""What Ray Serve alone gives: a FastAPI ingress in front of a replica that calls the DSPy program, until Ctrl-C."""

import os
import sys
import time

import dspy
import ray
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve.handle import DeploymentHandle

app = FastAPI()
SMALL = {"num_cpus": 0.1}


class Question(BaseModel):
    """What is asked."""

    text: str


@serve.deployment(max_ongoing_requests=1000, ray_actor_options=SMALL)
class Program:
    """The DSPy program."""

    def __init__(self) -> None:
        model, base = os.environ["PEER_MODEL"], os.environ["PEER_API_BASE"]
        self.lm = dspy.LM(f"openai/{model}", api_base=base, api_key="x", cache=False)
        self.program = dspy.Predict("question -> answer")

    async def __call__(self, question: str) -> dict[str, object]:
        with dspy.context(lm=self.lm):
            return (await self.program.acall(question=question)).toDict()


@serve.deployment(max_ongoing_requests=1000, ray_actor_options=SMALL)
@serve.ingress(app)
class Ingress:
    """HTTP."""

    def __init__(self, program: DeploymentHandle) -> None:
        self.program = program

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        """Whether it runs."""
        return {"status": "ok"}

    @app.post("/predict")
    async def predict(self, question: Question) -> dict[str, object]:
        """The program's answer."""
        return {"status": "success", "data": await self.program.remote(question.text)}


if __name__ == "__main__":
    ray.init(address="local", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Ingress.bind(Program.bind()))
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        serve.shutdown()
        ray.shutdown()
