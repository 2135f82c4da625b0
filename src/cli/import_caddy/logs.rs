//! `log`, among the global options and in sites. vestibule has one log: of what stands there, how much of a client's address
//! it shows is carried over, and the rest is told.

use super::{Remark, emit::quote, model::TargetConfig, parser::Directive};

/// The fields of Caddy's access log that hold the client's address.
const ADDRESSES: [&str; 4] = ["request>remote_ip", "request>client_ip", "remote_ip", "client_ip"];

/// Takes a `log` in.
pub fn read(log: &Directive, model: &mut TargetConfig, remarks: &mut Vec<Remark>) {
    for line in log.block.iter().flatten() {
        let value = line.args.first().map_or("", |token| token.text.as_str());
        match (line.name.as_str(), value) {
            ("output", "stdout" | "stderr") | ("format", "json") | ("level", "INFO" | "info") => {}
            ("level", "DEBUG" | "debug") => drop(model.set("log", "level", quote("debug"))),
            ("output", "file") => {
                let text =
                    "`output file`: vestibule has one log, on standard error; to write it to a file, set log.file";
                remarks.push(Remark::note(line.line, text));
            }
            ("output", "discard") => {
                let text = "`output discard`: vestibule has one log for all sites; log.access = false turns off its lines for requests";
                remarks.push(Remark::note(line.line, text));
            }
            ("format", "filter") => filter(line, model, remarks),
            _ => {
                let text = format!("`{} {value}` of `log`: vestibule has one log, with a format of its own", line.name);
                remarks.push(Remark::note(line.line, text));
            }
        }
    }
}

/// `format filter`: what is done to the fields of a line, in a block of its own or directly.
fn filter(format: &Directive, model: &mut TargetConfig, remarks: &mut Vec<Remark>) {
    for line in format.block.iter().flatten() {
        if line.name == "fields" {
            filter(line, model, remarks);
            continue;
        }
        let how = line.args.first().map_or("", |token| token.text.as_str());
        let shown = match how {
            "ip_mask" => Some("masked"),
            "delete" | "replace" | "hash" => Some("none"),
            _ => None,
        };
        match shown.filter(|_| ADDRESSES.contains(&line.name.as_str())) {
            Some(shown) => drop(model.set("log", "client_ip", quote(shown))),
            None if line.name == "wrap" => {}
            None => {
                let text =
                    format!("`{} {how}` of `log`: vestibule logs no other field of a request than its own", line.name);
                remarks.push(Remark::note(line.line, text));
            }
        }
    }
}
