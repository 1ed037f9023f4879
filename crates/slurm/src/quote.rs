//! Text that bash, and sbatch's own parser of directives, must take as it is.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

/// `text` as one word of bash: nothing in it expands, and it stays on one line.
pub fn word(text: impl AsRef<OsStr>) -> String {
    let bytes = text.as_ref().as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+=@%,:".contains(byte);
    match std::str::from_utf8(bytes) {
        Ok(text) if !bytes.is_empty() && bytes.iter().all(plain) => text.to_string(),
        Ok(text) if !text.contains(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => escaped(bytes),
    }
}

/// `$'...'`: line breaks and bytes that are no text stand there as numbers.
fn escaped(bytes: &[u8]) -> String {
    let mut quoted = String::from("$'");
    for &byte in bytes {
        match byte {
            b'\'' | b'\\' => {
                quoted.push('\\');
                quoted.push(char::from(byte));
            }
            b' '..=b'~' => quoted.push(char::from(byte)),
            _ => {
                // Three digits always, so that a digit that follows is not taken in.
                let _ = write!(quoted, "\\{byte:03o}");
            }
        }
    }
    quoted + "'"
}

/// A folder that may begin with a variable of the job: `$NAME/rest` and `${NAME}/rest` expand the name only, to nothing
/// if it is not set.
pub fn folder(text: &str) -> String {
    let named = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (name, rest) = match text.strip_prefix("${").and_then(|text| text.split_once('}')) {
        Some(parts) => parts,
        None => match text.strip_prefix('$') {
            Some(text) => text.split_at(text.find(|c| !named(c)).unwrap_or(text.len())),
            None => return word(text),
        },
    };
    if name.is_empty() || !name.chars().all(named) {
        return word(text);
    }
    let rest = if rest.is_empty() { String::new() } else { word(rest) };
    format!("\"${{{name}:-}}\"{rest}")
}

/// The value of a directive. sbatch's parser knows quotes and comments but expands nothing.
pub fn directive(value: &str) -> String {
    if value.contains(|c: char| c.is_whitespace() || c == '#') {
        format!("\"{value}\"")
    } else {
        value.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const HOSTILE: [&str; 12] = [
        "",
        "plain",
        "a b",
        "it's",
        "\"x\"",
        "$(touch /tmp/owned)",
        "`id`",
        "-rf",
        "a\nb",
        "a'\n1\\",
        "ü * ?",
        "!x #y ~ {a,b}",
    ];

    #[test]
    fn bash_takes_every_word_as_it_is() {
        for text in HOSTILE {
            let script = format!("printf %s {}", word(text));
            assert!(!script.contains('\n'), "{script}");
            let output = Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(output.stdout, text.as_bytes(), "{script}");
        }
        let bytes = OsStr::from_bytes(b"\xff1\x80");
        let output =
            Command::new("bash").args(["-c", &format!("printf %s {}", word(bytes))]).output().unwrap();
        assert_eq!(output.stdout, bytes.as_bytes());
    }

    #[test]
    fn only_a_leading_variable_of_a_folder_expands() {
        for (text, expected) in [
            ("$SCR/a b/$(x)", "/local/a b/$(x)"),
            ("${SCR}x/$SCR", "/localx/$SCR"),
            ("$NOT_SET/x", "/x"),
            ("/tmp/$SCR", "/tmp/$SCR"),
            ("$(id)", "$(id)"),
            ("${SCR", "${SCR"),
        ] {
            let script = format!("printf %s {}", folder(text));
            let output = Command::new("bash").args(["-uc", &script]).env("SCR", "/local").output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{script}");
        }
    }
}
