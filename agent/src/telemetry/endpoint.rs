//! Where spans go.

use axum::http::Uri;

use super::TelemetryError;

/// Why spans cannot go there, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// This program cannot export spans.
    #[error(
        "this sandpipe is built without OpenTelemetry: build it with --features otel, or take \
         the setting out"
    )]
    NotBuilt,
    /// It is no URL of a receiver.
    #[error("use http://HOST:PORT; there is no TLS, so let a collector on this host send it on")]
    NotHttp,
}

/// Of one signal, and taken as it is; of all signals, each with a path of its own below it.
const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Whether spans can be sent to a receiver at this URL.
///
/// # Errors
/// [`EndpointError`].
pub fn check_endpoint(url: &str) -> Result<(), EndpointError> {
    if cfg!(not(feature = "otel")) {
        return Err(EndpointError::NotBuilt);
    }
    is_http(url).then_some(()).ok_or(EndpointError::NotHttp)
}

fn is_http(url: &str) -> bool {
    let uri = url.parse::<Uri>();
    uri.is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some())
}

/// The whole URL that spans are sent to, if they are to be sent. The environment goes before what
/// is configured, as for every other setting.
///
/// # Errors
/// [`TelemetryError::Endpoint`].
pub(super) fn choose(
    configured: Option<&str>,
    env: impl Fn(&'static str) -> Option<String>,
) -> Result<Option<String>, TelemetryError> {
    // The specification: an empty variable is like none.
    let env = |name| env(name).filter(|value| !value.trim().is_empty());
    if env("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let (name, value) = match (env(TRACES), env(ALL), configured) {
        (Some(value), _, _) => (TRACES, value),
        (None, Some(value), _) => (ALL, value),
        (None, None, Some(value)) => ("[telemetry] otlp", value.to_owned()),
        (None, None, None) => return Ok(None),
    };
    if !is_http(&value) {
        let reason = EndpointError::NotHttp;
        return Err(TelemetryError::Endpoint {
            name,
            value,
            reason,
        });
    }
    Ok(Some(match name {
        TRACES => value,
        _ => format!("{}/v1/traces", value.trim_end_matches('/')),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(configured: Option<&str>, env: &[(&str, &str)]) -> Result<Option<String>, String> {
        let find = |name: &str| {
            let found = env.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        choose(configured, find).map_err(|error| error.to_string())
    }

    #[test]
    fn the_environment_goes_before_the_configuration_and_its_own_path_is_kept() {
        let url = |text: &str| Ok(Some(text.to_owned()));
        let file = Some("http://file:4318/");
        assert_eq!(chosen(None, &[]), Ok(None));
        assert_eq!(chosen(file, &[]), url("http://file:4318/v1/traces"));
        assert_eq!(
            chosen(file, &[(ALL, "")]),
            url("http://file:4318/v1/traces")
        );
        let all = (ALL, "http://all:4318");
        assert_eq!(chosen(file, &[all]), url("http://all:4318/v1/traces"));
        let own = (TRACES, "http://own:4318/here");
        assert_eq!(chosen(file, &[all, own]), url("http://own:4318/here"));
        let off = ("OTEL_SDK_DISABLED", "TRUE");
        assert_eq!(chosen(file, &[all, off]), Ok(None));
    }

    #[test]
    fn what_is_no_url_of_http_is_refused_by_the_setting_s_name() {
        for wrong in ["https://there:4318", "there:4318", "http://", "/v1/traces"] {
            let error = chosen(None, &[(ALL, wrong)]).unwrap_err();
            assert!(
                error.starts_with(&format!("{ALL} = \"{wrong}\": use http://")),
                "{error}"
            );
            assert!(chosen(Some(wrong), &[]).is_err());
        }
    }
}
