"""``POST /v1/feedback``: what a caller thought of an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from serve_app.deployments.http_body import read_body
from serve_app.deployments.http_problems import to_json
from serve_app.deployments.requests import read_object

if TYPE_CHECKING:
    from serve_app.deployments.ingress import Ingress

MAX_BODY_BYTES: Final = 32_768


class FeedbackBody(BaseModel):
    """A caller's verdict on one answer."""

    model_config = ConfigDict(extra="forbid", title="Feedback", allow_inf_nan=False, strict=True)

    request_id: str = Field(min_length=1, max_length=128, description="meta.request_id of the answer.")
    score: float = Field(ge=0, le=1, description="0 is useless, 1 is what was wanted.")
    comment: str = Field("", max_length=4000, description="Why; kept only in the program's record, if it has one.")


def add_feedback(api: FastAPI, ingress: Ingress) -> None:
    """Add the route; its errors are the API's problems."""
    content = {"application/json": {"schema": FeedbackBody.model_json_schema()}}

    @api.post(
        "/v1/feedback",
        summary="Say how good an answer was",
        tags=["programs"],
        openapi_extra={"requestBody": {"required": True, "content": content}},
        responses={
            404: {"description": "No call of that request id was answered lately."},
            409: {"description": "The call has its verdict; the first one counts."},
            422: {"description": "Not a verdict: the detail names the field."},
            503: {"description": "The control plane does not answer at the moment."},
        },
    )
    async def feedback(request: Request) -> Response:
        body = read_object(FeedbackBody, await read_body(request, MAX_BODY_BYTES))
        origin = await ingress.feedback.give(body.request_id, body.score, body.comment)
        told = {"request_id": body.request_id, "program": origin.program, "model": origin.model}
        return Response(to_json(told), media_type="application/json")
