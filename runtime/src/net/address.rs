//! The invite of a coordinator: `KEY@HOST:PORT`.

use std::fmt;
use std::str::FromStr;

use swarmline_scheduler::PeerId;

/// Address and key of a coordinator, printed as `KEY@HOST:PORT`. The key has 64 hexadecimal digits. The host is a name,
/// an IPv4 address, or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// The key that the coordinator must prove.
    pub peer: PeerId,
    /// Name or address, an IPv6 address without brackets.
    pub host: String,
    /// Port, 1 to 65535.
    pub port: u16,
}

/// Errors of reading an invite or a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// The invite has no `@`.
    #[error("the invite {0:?} has no '@'; it looks like KEY@HOST:PORT, as the coordinator prints it")]
    NoKey(String),
    /// The key is not 64 hexadecimal digits.
    #[error("the key {0:?} is not 64 hexadecimal digits; copy all of it from the coordinator's output")]
    Key(String),
    /// The host or the port is missing.
    #[error("{0:?} is not HOST:PORT; write an IPv6 address in brackets, like [::1]:7000")]
    Host(String),
    /// The port is not a number from 1 to 65535.
    #[error("the port {0:?} is not a number from 1 to 65535")]
    Port(String),
}

impl Invite {
    /// `HOST:PORT`, with brackets around an IPv6 address.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.peer, self.authority())
    }
}

impl FromStr for Invite {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let text = text.trim();
        let (key, authority) = text.split_once('@').ok_or_else(|| InviteError::NoKey(text.to_owned()))?;
        let (host, port) = split_authority(authority)?;
        Ok(Self { peer: parse_peer(key)?, host, port })
    }
}

/// Reads a key written as 64 hexadecimal digits.
///
/// # Errors
/// [`InviteError::Key`] for anything else.
pub fn parse_peer(text: &str) -> Result<PeerId, InviteError> {
    let error = || InviteError::Key(text.to_owned());
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).map_err(|_| error())?;
    bytes.try_into().map(PeerId).map_err(|_| error())
}

fn split_authority(text: &str) -> Result<(String, u16), InviteError> {
    let error = || InviteError::Host(text.to_owned());
    let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or_else(error)?,
        None if host.contains(':') => return Err(error()),
        None => host,
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/@[]".contains(c)) {
        return Err(error());
    }
    let port: u16 = port.parse().map_err(|_| InviteError::Port(port.to_owned()))?;
    if port == 0 {
        return Err(InviteError::Port(port.to_string()));
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> String {
        "0a".repeat(32)
    }

    #[test]
    fn an_invite_survives_printing() {
        for authority in ["example.org:7000", "10.0.0.1:1", "[::1]:65535"] {
            let text = format!("{}@{authority}", key());
            let invite: Invite = text.parse().unwrap();
            assert_eq!(invite.to_string(), text);
            assert_eq!(invite.authority(), authority);
        }
    }

    #[test]
    fn a_wrong_invite_says_what_is_wrong() {
        let check = |text: String, part: &str| {
            let message = text.parse::<Invite>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        };
        check("example.org:7000".into(), "no '@'");
        check("12@example.org:7000".into(), "64 hexadecimal digits");
        check(format!("{}@example.org", key()), "HOST:PORT");
        check(format!("{}@::1:7000", key()), "brackets");
        check(format!("{}@:7000", key()), "HOST:PORT");
        check(format!("{}@h:0", key()), "1 to 65535");
        check(format!("{}@h:70000", key()), "1 to 65535");
    }
}
