from fastapi import Request
from pydantic import BaseModel

from ..constants import AdapterHeader


class RegisterRequest(BaseModel):
    name: str
    src: str


class RegisterTransform:
    async def transform_request(self, raw_request: Request):
        data = raw_request.query_params
        alias = raw_request.headers.get(AdapterHeader.ALIAS)
        return RegisterRequest.model_validate(data), alias
