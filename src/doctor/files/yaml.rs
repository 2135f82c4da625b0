//! A YAML document as a tree of values with their lines.

use saphyr::{LoadableYamlNode as _, MarkedYaml, Scalar, YamlData};

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it begins, from 1.
    pub line: usize,
    value: Value,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Null,
    /// Numbers and booleans as they are written in YAML 1.2.
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// Reads the first document of a text.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let documents = MarkedYaml::load_from_str(text).map_err(|error| error.to_string())?;
        Ok(documents.first().map_or(Self { line: 1, value: Value::Null }, node))
    }

    /// A nested value by its keys; keys that are merged with `<<` are included.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.get(key)).filter(|node| node.value != Value::Null)
    }

    fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(members) = &self.value else { return None };
        let own = members.iter().find(|(name, _)| name == key).map(|(_, value)| value);
        own.or_else(|| {
            let (_, merged) = members.iter().find(|(name, _)| name == "<<")?;
            match &merged.value {
                Value::List(several) => several.iter().find_map(|one| one.get(key)),
                _ => merged.get(key),
            }
        })
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it is `true`.
    pub fn is_true(&self) -> bool {
        self.text() == Some("true")
    }

    /// The values of a list; empty for any other value.
    pub fn list(&self) -> &[Self] {
        match &self.value {
            Value::List(list) => list,
            _ => &[],
        }
    }

    /// The members of a map; empty for any other value.
    pub fn members(&self) -> impl Iterator<Item = (&str, &Self)> {
        let members = match &self.value {
            Value::Map(members) => members.as_slice(),
            _ => &[],
        };
        members.iter().map(|(key, value)| (key.as_str(), value))
    }
}

fn node(yaml: &MarkedYaml<'_>) -> Node {
    let line = yaml.span.start.line();
    let value = match &yaml.data {
        YamlData::Value(Scalar::Null) => Value::Null,
        YamlData::Value(scalar) => Value::Scalar(written(scalar)),
        YamlData::Sequence(list) => Value::List(list.iter().map(node).collect()),
        YamlData::Mapping(map) => Value::Map(map.iter().map(|(key, value)| member(key, value)).collect()),
        YamlData::Tagged(_, inner) => return node(inner),
        YamlData::Representation(text, ..) => Value::Scalar(text.to_string()),
        YamlData::Alias(_) | YamlData::BadValue => Value::Null,
    };
    Node { line, value }
}

/// A member of a map, with the line of its key.
fn member(key: &MarkedYaml<'_>, value: &MarkedYaml<'_>) -> (String, Node) {
    let name = match &key.data {
        YamlData::Value(scalar) => written(scalar),
        YamlData::Representation(text, ..) => text.to_string(),
        _ => String::new(),
    };
    (name, Node { line: key.span.start.line(), ..node(value) })
}

fn written(scalar: &Scalar<'_>) -> String {
    match scalar {
        Scalar::Null => String::new(),
        Scalar::Boolean(yes) => yes.to_string(),
        Scalar::Integer(number) => number.to_string(),
        Scalar::FloatingPoint(number) => number.to_string(),
        Scalar::String(text) => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_lines_and_anchors_are_followed() {
        let text =
            "base: &base\n  image: a\n\nservices:\n  one:\n    <<: *base\n    ports: [\"80:80\", 443]\n    on: true\n";
        let root = Node::parse(text).unwrap();
        assert_eq!(root.at(&["services", "one", "image"]).unwrap().text(), Some("a"));
        let ports = root.at(&["services", "one", "ports"]).unwrap();
        assert_eq!((ports.line, ports.list()[1].text()), (7, Some("443")));
        assert!(root.at(&["services", "one", "on"]).unwrap().is_true());
        assert!(root.at(&["services", "two"]).is_none());
        assert!(Node::parse("a: [").is_err());
    }
}
