//! Pages for people, and the description of the API: files that are part of the program. Those in
//! `pages/vendor` are from elsewhere: its README says from where.
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

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

const PAGES: &[Page] = &[
    Page {
        path: "/",
        content_type: HTML,
        body: include_str!("pages/dashboard.html"),
    },
    Page {
        path: "/problems",
        content_type: HTML,
        body: include_str!("pages/problems.html"),
    },
    Page {
        path: "/openapi.json",
        content_type: "application/json",
        body: include_str!("pages/openapi.json"),
    },
    Page {
        path: "/docs",
        content_type: HTML,
        body: include_str!("pages/docs.html"),
    },
    Page {
        path: "/docs/docs.js",
        content_type: SCRIPT,
        body: include_str!("pages/docs.js"),
    },
    Page {
        path: "/docs/style.css",
        content_type: STYLE,
        body: include_str!("pages/style.css"),
    },
];

/// What the dashboard is made of, by name, under [`PARTS_PATH`]. No one else is to rely on them, so
/// they are not in the description of the API.
const PARTS: &[(&str, &str, &str)] = &[
    ("licences.txt", "text/plain; charset=utf-8", LICENCES),
    (
        "dashboard.css",
        STYLE,
        include_str!("pages/dashboard/dashboard.css"),
    ),
    (
        "order-words.js",
        SCRIPT,
        include_str!("pages/dashboard/order-words.js"),
    ),
    ("time.js", SCRIPT, include_str!("pages/dashboard/time.js")),
    ("main.js", SCRIPT, include_str!("pages/dashboard/main.js")),
    (
        "address.js",
        SCRIPT,
        include_str!("pages/dashboard/address.js"),
    ),
    (
        "server.js",
        SCRIPT,
        include_str!("pages/dashboard/server.js"),
    ),
    (
        "stream.js",
        SCRIPT,
        include_str!("pages/dashboard/stream.js"),
    ),
    ("words.js", SCRIPT, include_str!("pages/dashboard/words.js")),
    ("state.js", SCRIPT, include_str!("pages/dashboard/state.js")),
    (
        "charts.js",
        SCRIPT,
        include_str!("pages/dashboard/charts.js"),
    ),
    ("list.js", SCRIPT, include_str!("pages/dashboard/list.js")),
    ("order.js", SCRIPT, include_str!("pages/dashboard/order.js")),
    ("dev.js", SCRIPT, include_str!("pages/dashboard/dev.js")),
    (
        "preact-htm.js",
        SCRIPT,
        include_str!("pages/vendor/preact-htm.js"),
    ),
    ("uplot.js", SCRIPT, include_str!("pages/vendor/uplot.js")),
    ("uplot.css", STYLE, include_str!("pages/vendor/uplot.css")),
];

/// What those who made the vendored files want to be passed on with them.
const LICENCES: &str = concat!(
    "Preact\n\n",
    include_str!("pages/vendor/LICENSE-preact"),
    "\n\nuPlot\n\n",
    include_str!("pages/vendor/LICENSE-uplot"),
    "\n\nhtm\n\n",
    include_str!("pages/vendor/LICENSE-htm"),
);

const PARTS_PATH: &str = "/dashboard/";

/// The place in the dashboard that says what it may do besides looking: nothing, unless the program
/// is `order-service dev`.
const DEV_NONE: &str = r#"<meta name="dev" content="none">"#;

/// What a page may do: nothing but use what comes from here (Content Security Policy, level 3).
/// The icon is an empty one in the page itself, so that the browser does not ask for another.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Every page, and what it is made of. The dashboard is told what `dev` there is to play with.
pub(super) fn pages(dev: Option<&'static str>) -> BoxedFilter<(Response,)> {
    let page = warp::path::full()
        .and_then(|path: FullPath| async move { Page::at(path.as_str()).ok_or_else(warp::reject) });
    let get = page.and(get_or_head()).map(move |page: Page| match dev {
        Some(dev) if page.path == "/" => {
            let told = DEV_NONE.replace("none", dev);
            reply(page.content_type, page.body.replace(DEV_NONE, &told))
        }
        _ => reply(page.content_type, page.body),
    });
    let otherwise = page
        .and(not_allowed("GET, HEAD"))
        .map(|_, response| response);
    get.or(otherwise).unify().boxed()
}

impl Page {
    fn at(path: &str) -> Option<Self> {
        if let Some(part) = path.strip_prefix(PARTS_PATH) {
            let (_, content_type, body) = PARTS.iter().find(|(name, ..)| *name == part)?;
            return Some(Self {
                path: PARTS_PATH,
                content_type,
                body,
            });
        }
        PAGES.iter().find(|page| page.path == path).copied()
    }
}

fn reply(content_type: &'static str, body: impl Reply) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, content_type),
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
