//! Pages for people, and the description of the API: files that are part of the program.
//!
//! A browser that shows them makes no request to anywhere else: no page has a script or a style in
//! itself, and the policy that goes with each forbids all that does not come from here.

use warp::filters::BoxedFilter;
use warp::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Reply};

use super::{get_or_head, not_allowed};

/// A file that is served as it is.
#[derive(Clone, Copy)]
struct Page {
    path: &'static str,
    content_type: &'static str,
    body: &'static str,
}

const PAGES: &[Page] = &[
    Page {
        path: "/problems",
        content_type: "text/html; charset=utf-8",
        body: include_str!("pages/problems.html"),
    },
    Page {
        path: "/openapi.json",
        content_type: "application/json",
        body: include_str!("pages/openapi.json"),
    },
    Page {
        path: "/docs",
        content_type: "text/html; charset=utf-8",
        body: include_str!("pages/docs.html"),
    },
    Page {
        path: "/docs/docs.js",
        content_type: "text/javascript; charset=utf-8",
        body: include_str!("pages/docs.js"),
    },
    Page {
        path: "/docs/style.css",
        content_type: "text/css; charset=utf-8",
        body: include_str!("pages/style.css"),
    },
];

/// What a page may do: nothing but use what comes from here (Content Security Policy, level 3).
/// The icon is an empty one in the page itself, so that the browser does not ask for another.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Every page.
pub(super) fn pages() -> BoxedFilter<(Response,)> {
    let page = warp::path::full().and_then(|path: FullPath| async move {
        let page = PAGES.iter().find(|page| page.path == path.as_str());
        page.ok_or_else(warp::reject)
    });
    let get = page.and(get_or_head()).map(Page::reply);
    let otherwise = page
        .and(not_allowed("GET, HEAD"))
        .map(|_, response| response);
    get.or(otherwise).unify().boxed()
}

impl Page {
    fn reply(&self) -> Response {
        let mut response = self.body.into_response();
        let headers = response.headers_mut();
        for (name, value) in [
            (CONTENT_TYPE, self.content_type),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            // It changes with the program; to ask again costs next to nothing.
            (CACHE_CONTROL, "no-cache"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
