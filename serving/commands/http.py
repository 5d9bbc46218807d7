"""``serve-llm http``: an HTTP server with OpenAI's API."""

import click

from serving.commands.server_options import ServerOptions, refuse_unused, server_options


@click.command()
@server_options
def http(server: ServerOptions) -> None:
    """Serve each BUNDLE under its NAME (default: its directory's) with OpenAI's API."""
    from serving.http.logs import configure_logs
    from serving.http.served_model import open_models
    from serving.http.server import serve
    from serving.http.state import ServerState

    configure_logs(server.log_level.upper())
    models = open_models(server.bundles, server.loading, **server.scheduling)
    refuse_unused(models)
    click.echo(f"{', '.join(server.bundles)}: {server.listening.url}/v1")
    serve(ServerState(models, server.limits, server.keys), server.listening, server.drain_seconds)
