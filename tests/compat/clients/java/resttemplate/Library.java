package compat;

import org.openapitools.client.ApiClient;
import org.openapitools.client.api.CallbacksApi;
import org.openapitools.client.api.OperationsApi;
import org.openapitools.client.api.ReadsApi;
import org.openapitools.client.model.Member;
import org.springframework.http.ResponseEntity;
import org.springframework.web.client.HttpStatusCodeException;
import org.springframework.web.client.RestClientException;

/** The library resttemplate: Spring's RestTemplate. */
final class Library {
  private static ApiClient client(String url, String authorization) {
    return new ApiClient().setBasePath(url).addDefaultHeader("Authorization", authorization);
  }

  static ReadsApi reads(String url, String authorization) {
    return new ReadsApi(client(url, authorization));
  }

  static CallbacksApi callbacks(String url, String authorization) {
    return new CallbacksApi(client(url, authorization));
  }

  static OperationsApi operations(String url, String authorization) {
    return new OperationsApi(client(url, authorization));
  }

  /** Status and ETag. */
  static String[] member(ReadsApi reads, String group, String user, String etag) {
    try {
      ResponseEntity<Member> answer = reads.getMemberWithHttpInfo(group, user, etag);
      return new String[] {
        "" + answer.getStatusCode().value(), answer.getHeaders().getETag()
      };
    } catch (RestClientException answer) {
      // It says so in its text alone: "API returned 304 NOT_MODIFIED and ...".
      return new String[] {answer.getMessage().contains(" 304 ") ? "304" : answer.getMessage(), null};
    }
  }

  static int status(Exception failed) {
    return ((HttpStatusCodeException) failed).getStatusCode().value();
  }

  static String body(Exception failed) {
    return ((HttpStatusCodeException) failed).getResponseBodyAsString();
  }
}
