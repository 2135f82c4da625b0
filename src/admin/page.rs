//! The page for the operator: its files, built in. It loads nothing from anywhere else.

use super::routes::{self, Response};

pub const STYLE: &str = include_str!("page/page.css");
pub const SCRIPT: &str = include_str!("page/page.js");
const HTML: &str = include_str!("page/page.html");

/// The page, with the token by which it may act.
pub fn html(token: &str) -> Response {
    routes::html(HTML.replace("{token}", token))
}
