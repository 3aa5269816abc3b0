from fastapi import FastAPI, Request


class MetadataServer:
    def __init__(self, path=None):
        self.app = FastAPI(openapi_url=None)
        self._routes()

    def _routes(self):
        self.app.post("/keys/{key}/put")(self.put)

    async def put(self, key: str, request: Request):
        data = await request.json()
        return data.get("value")
