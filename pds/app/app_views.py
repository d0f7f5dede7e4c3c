"""Makes the proxy and what answers the app.bsky views, and lets accounts choose their AppView."""

from dataclasses import dataclass

from pds.app.foundation import Foundation
from pds.config import Config
from pds.protocol.lexicon.catalog import Catalog
from pds.services.account_cache import AccountCache
from pds.services.app_views import AppViews
from pds.services.appview_choices import AppviewChoices
from pds.services.local_answers import LocalAnswers
from pds.services.local_records import LocalReader
from pds.services.local_views import ImageUrls
from pds.services.proxy import Proxy, ProxySettings, ServiceAddress
from pds.services.quoted_views import QuotedViews
from pds.services.read_after_write import ReadAfterWrite
from pds.services.service_tokens import ServiceTokens


@dataclass(frozen=True, slots=True)
class ViewServices:
    """What this module makes."""

    app_views: AppViews
    appview_choices: AppviewChoices
    proxy: Proxy


def build_views(
    base: Foundation, *, cache: AccountCache, catalog: Catalog, tokens: ServiceTokens
) -> ViewServices:
    """Make the services."""
    config, engine = base.config, base.engine
    choices = AppviewChoices(engine=engine, clock=base.clock, accounts=cache)
    proxy = Proxy(
        trusted=base.proxy_trusted,
        guarded=base.proxy_guarded,
        documents=base.resolver,
        tokens=tokens,
        settings=_proxy_settings(config),
        choices=choices,
    )
    pattern = config.federation.appview_cdn_url_pattern
    urls = ImageUrls(public_url=config.public_url, pattern=pattern)
    reader = LocalReader(catalog)
    quoted = QuotedViews(engine=engine, reader=reader, proxy=proxy, urls=urls)
    views = AppViews(
        proxy=proxy,
        documents=base.resolver,
        catalog=catalog,
        read_after_write=ReadAfterWrite(
            engine=engine,
            wall=base.time,
            accounts=cache,
            catalog=catalog,
            reader=reader,
            quoted=quoted,
            urls=urls,
        ),
        local=LocalAnswers(engine=engine, reader=reader, quoted=quoted, urls=urls),
    )
    return ViewServices(views, choices, proxy)


def _proxy_settings(config: Config) -> ProxySettings:
    services, outbound = config.federation, config.outbound
    moderation = _address(services.mod_service_did, services.mod_service_url)
    return ProxySettings(
        appview=_address(services.appview_did, services.appview_url),
        moderation=moderation,
        reports=_address(services.report_service_did, services.report_service_url) or moderation,
        headers_timeout_s=outbound.proxy_headers_timeout_s,
        max_answer_bytes=outbound.proxy_max_bytes,
    )


def _address(did: str | None, url: str | None) -> ServiceAddress | None:
    return ServiceAddress(did, url) if did and url else None
