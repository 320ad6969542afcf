"""The line at a glance inside Airflow: the scoring server's page, in the frame of Airflow's own UI.

The server lets nobody frame its page, so the same page is shown from here, `/headrace/`, and what
it draws is fetched from the server by Airflow's API server: for those who are signed in, whose
cookie the browser sends along. Every process of Airflow imports this file, and only the API server
needs what its application needs: it is made at the first request.
"""

from typing import Annotated, Any, Final

from airflow.plugins_manager import AirflowPlugin

PREFIX: Final = "/headrace"
_PATIENCE_S: Final = 5.0
_LINE: Final = r"^[a-z][a-z0-9_]*$"
_REPORT: Final = r"^[0-9TZ.-]+\.html$"
_OF_REPORTS: Final = (  # a report has no script, and its style stands in it
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)


def make_app() -> Any:
    """`/` is the page, which holds nothing of the line; `/v1/status` what the server tells;
    `/reports/<line>/<page>` a report as `write_report` left it.
    """
    from importlib.resources import files

    import httpx
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi import Depends, FastAPI, HTTPException, Path
    from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

    from headrace.serving.policy import content_policy
    from headrace.settings import load_settings

    settings = load_settings()
    page = files("headrace.serving").joinpath("page.html").read_text(encoding="utf-8")
    policy = content_policy(page, framed_by="'self'")
    token = settings.admin_token
    headers = {"authorization": f"Bearer {token}"} if token else {}
    app = FastAPI(title="Headrace", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    async def shown() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    @app.get("/v1/status", dependencies=[Depends(get_user)])
    async def status() -> JSONResponse:
        where = f"{settings.server_url}/v1/status"
        async with httpx.AsyncClient(timeout=_PATIENCE_S, trust_env=False) as client:
            try:
                answer = await client.get(where, headers=headers)
            except httpx.HTTPError as problem:
                told = f"no answer from {where} ({type(problem).__name__}); is the server up?"
                return JSONResponse({"error": told}, status_code=502)
        return JSONResponse(answer.json(), status_code=answer.status_code)

    @app.get("/reports/{line}/{page}", dependencies=[Depends(get_user)])
    async def report(
        line: Annotated[str, Path(pattern=_LINE)], page: Annotated[str, Path(pattern=_REPORT)]
    ) -> FileResponse:
        file = settings.line_home(line) / "reports" / page
        if not file.is_file():
            raise HTTPException(404, f"no report {page} of line {line} in this home")
        return FileResponse(file, headers={"content-security-policy": _OF_REPORTS})

    return app


class _AtFirstRequest:
    """An ASGI application that is made when somebody asks for it."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._app = self._app or make_app()
        await self._app(scope, receive, send)


class HeadracePage(AirflowPlugin):  # type: ignore[misc]
    """An entry *Headrace* in Airflow's navigation."""

    name = "headrace"
    fastapi_apps = [{"app": _AtFirstRequest(), "url_prefix": PREFIX, "name": "Headrace"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Headrace",
            "href": f"{PREFIX}/",
            "destination": "nav",
            "url_route": "headrace",
        }
    ]
