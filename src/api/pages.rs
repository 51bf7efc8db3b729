//! HTML pages and the description of the API, compiled into the program. The README in
//! `pages/vendor` gives the sources of the vendored files.
//!
//! Browsers that show them make no requests to other hosts: no page has inline scripts or styles,
//! and the security policy of each forbids resources from elsewhere.

use warp::Reply;
use warp::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use warp::reply::Response;

/// A static file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub content_type: &'static str,
    pub body: &'static str,
}

pub(super) const HTML: &str = "text/html; charset=utf-8";
pub(super) const JSON: &str = "application/json";
pub(super) const SCRIPT: &str = "text/javascript; charset=utf-8";
pub(super) const STYLE: &str = "text/css; charset=utf-8";

macro_rules! file {
    ($folder:literal, $name:literal, $content_type:expr) => {
        (
            $name,
            $content_type,
            include_str!(concat!("pages/", $folder, "/", $name)),
        )
    };
}

/// The files of the dashboard by name. They are internal, so the description of the API omits them.
const DASHBOARD_FILES: [(&str, &str, &str); 16] = [
    ("licences.txt", "text/plain; charset=utf-8", LICENCES),
    file!("dashboard", "dashboard.css", STYLE),
    file!("dashboard", "time.js", SCRIPT),
    file!("dashboard", "main.js", SCRIPT),
    file!("dashboard", "address.js", SCRIPT),
    file!("dashboard", "server.js", SCRIPT),
    file!("dashboard", "stream.js", SCRIPT),
    file!("dashboard", "words.js", SCRIPT),
    file!("dashboard", "state.js", SCRIPT),
    file!("dashboard", "charts.js", SCRIPT),
    file!("dashboard", "list.js", SCRIPT),
    file!("dashboard", "order.js", SCRIPT),
    file!("dashboard", "dev.js", SCRIPT),
    file!("vendor", "preact-htm.js", SCRIPT),
    file!("vendor", "uplot.js", SCRIPT),
    file!("vendor", "uplot.css", STYLE),
];

/// Licence texts that the authors of the vendored files require to be distributed with them.
const LICENCES: &str = concat!(
    "Preact\n\n",
    include_str!("pages/vendor/LICENSE-preact"),
    "\n\nuPlot\n\n",
    include_str!("pages/vendor/LICENSE-uplot"),
    "\n\nhtm\n\n",
    include_str!("pages/vendor/LICENSE-htm"),
);

/// The dashboard's element that names its extra functions: none, unless the program is
/// `order-service dev`.
const DEV_NONE: &str = r#"<meta name="dev" content="none">"#;

/// Content Security Policy (level 3) of all pages: only resources of this origin. The icon is an
/// empty one inside the page, so that browsers do not request another.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Returns the dashboard. `dev` names its extra functions.
pub(super) fn dashboard(dev: &str) -> Response {
    let html = include_str!("pages/dashboard.html");
    reply(HTML, html.replace(DEV_NONE, &DEV_NONE.replace("none", dev)))
}

/// Returns a file of the dashboard.
pub(super) fn dashboard_file(name: &str) -> Option<Response> {
    let (_, content_type, body) = DASHBOARD_FILES
        .into_iter()
        .find(|(file, ..)| *file == name)?;
    Some(reply(content_type, body))
}

impl Page {
    pub fn reply(self) -> Response {
        reply(self.content_type, self.body)
    }
}

/// Returns a text page: `main` within the layout that all pages share.
pub(super) fn document(title: &str, main: &str) -> String {
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · order service</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/style.css">
</head>
<body>
<main>
{main}</main>
</body>
</html>
"#
    )
}

/// Converts a text to HTML, with code between backticks.
pub(super) fn prose(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let parts = text
        .split('`')
        .enumerate()
        .map(|(index, part)| match index % 2 {
            0 => part.to_owned(),
            _ => format!("<code>{part}</code>"),
        });
    parts.collect()
}

pub(super) fn reply(content_type: &'static str, body: impl Reply) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // Pages change with the program's version, so each load fetches their files again.
        (CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
