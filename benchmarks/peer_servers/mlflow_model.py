"""Save the program with MLflow's DSPy flavor, for ``mlflow models serve``."""

import os
import sys

import dspy
import mlflow

lm = dspy.LM(f"openai/{os.environ['PEER_MODEL']}", api_base=os.environ["PEER_API_BASE"], cache=False)
dspy.configure(lm=lm)
mlflow.dspy.save_model(
    dspy.Predict("question -> answer"),
    sys.argv[1],
    input_example={"question": "why?"},
    task=None,
)
